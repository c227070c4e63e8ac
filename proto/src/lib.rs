//! The control protocol of memtun, as types: what a harness and the daemon send each other, one JSON object a line.
//!
//! `docs/control.md` describes the protocol for people, `docs/control.schema.json` for programs; the schema is made from
//! these types. Each verb has a module of its name, with the parameters of its method and its result. [`mod@line`] has what is
//! around them, [`event`] what `watch` sends, [`error`] the failures. There is no I/O here: the crate `memtun-client` talks
//! to a daemon.
//!
//! ```
//! use memtun_proto::{Method, line::Call, take::Take};
//!
//! let take = Take::new("tun0").count(2).segment(true);
//! let call = Call { id: 1.into(), method: Take::NAME.to_owned(), params: take };
//! assert_eq!(
//!     serde_json::to_string(&call)?,
//!     r#"{"id":1,"method":"take","params":{"tunnel":"tun0","count":2,"timeout_ms":10000,"segment":true,"keep":false}}"#
//! );
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! The types will grow: other crates make them with constructors, and do not name all fields of them. A new field of a
//! result or an event does not change the version of the protocol.

pub mod attach;
pub mod delete;
pub mod drop;
pub mod error;
pub mod event;
pub mod hex;
pub mod host;
pub mod inject;
pub mod interface;
pub mod join;
pub mod limits;
pub mod line;
pub mod list;
mod method;
pub mod part;
#[cfg(feature = "schema")]
pub mod schema;
pub mod set;
pub mod take;
mod text;
mod vnet;
pub mod wait;
pub mod watch;

pub use self::{
    error::Failure,
    method::{DEFAULT_TIMEOUT_MS, Method},
    text::{Address, Cidr, Forward, MacAddress, Name},
    vnet::Vnet,
};

/// Does something for every method: `$each!` gets the types of their parameters, in the order of `docs/control.md`.
#[macro_export]
macro_rules! for_each_method {
    ($each:ident) => {
        $each! {
            $crate::list::List,
            $crate::limits::Limits,
            $crate::inject::Inject,
            $crate::take::Take,
            $crate::drop::DropKept,
            $crate::wait::Wait,
            $crate::watch::Watch,
            $crate::set::Set,
            $crate::delete::Delete,
            $crate::interface::Interface,
            $crate::attach::Attach,
            $crate::join::Join,
            $crate::host::Host,
            $crate::part::Part,
        }
    };
}

macro_rules! names {
    ($($method:ty,)*) => {
        /// The names of all methods.
        pub const METHODS: &[&str] = &[$(<$method as Method>::NAME),*];
    };
}
for_each_method!(names);
