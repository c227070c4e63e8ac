//! A program without the standard library: it has a panic handler of its own. If `memtun-core` or one of its dependencies
//! brought in `std`, there would be two, which the compiler refuses (E0152).

#![no_std]

#[cfg(feature = "std")]
extern crate std;

pub use memtun_core::Core;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
