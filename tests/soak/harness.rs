//! A harness: calls of the control socket in random order, of which it does not read every answer.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::end_with_parent;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

pub(crate) fn play(control: &Path, mut random: fastrand::Rng) {
    end_with_parent();
    loop {
        // The daemon may have all the connections that it takes.
        if converse(control, &mut random).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One connection, until it ends or is given up.
fn converse(control: &Path, random: &mut fastrand::Rng) -> std::io::Result<()> {
    let stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let reads = random.u8(..4) > 0;
    let mut lines = BufReader::new(stream);
    let mut tunnels: Vec<u64> = Vec::new();
    for id in 0..random.u32(1..400) {
        let tunnel = if tunnels.is_empty() { 0 } else { tunnels[random.usize(..tunnels.len())] };
        let (method, params) = call(random, tunnel);
        let line = json!({"id": id, "method": method, "params": params});
        writeln!(lines.get_mut(), "{line}")?;
        if !reads {
            continue;
        }
        // Whatever comes: an answer, or events.
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(listed) = answer["result"]["tunnels"].as_array() {
            tunnels = listed.iter().filter_map(|tunnel| tunnel["id"].as_u64()).collect();
        }
    }
    if !reads {
        thread::sleep(Duration::from_millis(random.u64(..2_000)));
    }
    Ok(())
}

fn call(random: &mut fastrand::Rng, tunnel: u64) -> (&'static str, Value) {
    let address = format!("#{tunnel}");
    match random.u8(..20) {
        0..3 => ("list", json!({})),
        3..9 => {
            let length = if random.u8(..8) == 0 { random.usize(20..60_000) } else { 60 };
            ("inject", json!({"tunnel": address, "datagram": "45".repeat(length)}))
        }
        9..13 => {
            let count = random.u16(1..66);
            ("take", json!({"tunnel": address, "count": count, "timeout_ms": random.u8(..20)}))
        }
        13 => ("watch", json!({})),
        14 => ("attach", json!({"tunnel": address})),
        15 => ("part", json!({"tunnel": address})),
        16 => ("set", json!({"tunnel": address, "up": random.u8(..4) > 0})),
        17 if random.u8(..8) == 0 => ("delete", json!({"tunnel": address})),
        17 => ("limits", json!({})),
        18 => ("wait", json!({"tunnel": address, "until": "reading", "timeout_ms": 5})),
        _ => ("host", json!({"tunnel": address, "addresses": ["10.0.0.1/24"]})),
    }
}
