//! `set`: changes a tunnel from outside, as `ip link set` does an interface.

use std::{str::FromStr, sync::Arc};

use clap::{Arg, ArgMatches, Command, FromArgMatches, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{Method, usage_error};
use crate::{
    abi::tun::Name,
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::{Address, MacAddress, Settings, input, parse_name},
};

/// Parameters on the wire: all that is asked for is changed or, if a part of it is refused, nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The tunnel.
    pub tunnel: Address,
    /// Up or down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// Maximum transmission unit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Ethernet address of a tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Name, or a template with `%d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// On or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// How many datagrams a queue holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txqueuelen: Option<u32>,
}

/// Whether clients can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Writes succeed.
    Up,
    /// Writes get EIO, and poll gives no POLLOUT.
    Down,
}

/// Whether anything reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// Datagrams can be injected.
    On,
    /// None can.
    Off,
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {}

impl Set {
    /// No change of a tunnel yet.
    #[must_use]
    pub fn of(tunnel: Address) -> Self {
        Self {
            tunnel,
            link: None,
            mtu: None,
            mac: None,
            name: None,
            carrier: None,
            txqueuelen: None,
        }
    }
}

impl Method for Set {
    const NAME: &'static str = "set";
    type Result = Done;

    fn perform(self, session: &Arc<Session>, reply: Reply<Done>) {
        let settings = Settings {
            up: self.link.map(|link| link == Link::Up),
            mtu: self.mtu,
            hwaddr: self.mac,
            name: self.name,
            carrier: self.carrier.map(|carrier| carrier == Carrier::On),
            tx_queue_length: self.txqueuelen,
        };
        let result = session.hub().handle(input::Configure { tunnel: self.tunnel, settings });
        reply.send(result.map(|()| Done {}).map_err(Into::into));
    }
}

/// Changes a tunnel, as 'ip link set' changes an interface. It makes all the changes or none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Changes, each at most once, in any order:
  up | down
          While a tunnel is down, writes get EIO and poll gives no POLLOUT. What is queued can still be read
  carrier on|off
          Without carrier nothing reaches the client. Its writes succeed
  mtu N
          68 to 65535; of a tap, to 65521
  mac ADDRESS
          The Ethernet address of a tap
  name NAME
          A name, or a template such as tun%d
  txqueuelen N
          How many datagrams a queue holds. If it holds more, the newest are lost")]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    #[command(flatten)]
    changes: Changes,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        let Changes(changes) = self.changes;
        client.call(&Set { tunnel: self.tunnel, ..changes }).map(|Done {}| ())
    }
}

/// The words after the tunnel, as `ip` takes them, parsed; the tunnel in it says nothing.
#[derive(Debug)]
struct Changes(Set);

impl Changes {
    fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set = Set::of(Address::Name(Name::default()));
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if let Ok(link) = Link::from_str(word, false) {
                once("up or down", &mut set.link, link)?;
                continue;
            }
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word {
                "mtu" => once(word, &mut set.mtu, number(word, value()?)?)?,
                "txqueuelen" => once(word, &mut set.txqueuelen, number(word, value()?)?)?,
                "mac" => once(word, &mut set.mac, MacAddress::from_str(value()?)?)?,
                "name" => once(word, &mut set.name, parse_name(value()?)?)?,
                "carrier" => {
                    let value = value()?;
                    let carrier = Carrier::from_str(value, false)
                        .map_err(|_| format!("carrier is on or off, not {value:?}"))?;
                    once(word, &mut set.carrier, carrier)?;
                }
                _ => {
                    return Err(format!(
                        "{word:?} is not a change; the changes are up, down, carrier, mtu, mac, name and txqueuelen"
                    ));
                }
            }
        }
        Ok(Self(set))
    }
}

/// A change is asked for once: of two, one would be lost without a word.
fn once<T>(what: &str, change: &mut Option<T>, value: T) -> Result<(), String> {
    match change.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{what} may be given once")),
    }
}

fn number(word: &str, value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{word} takes a number, not {value:?}"))
}

impl FromArgMatches for Changes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let words = matches.get_many::<String>("changes").unwrap_or_default();
        Self::parse(words.map(String::as_str)).map_err(usage_error)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Changes {
    fn augment_args(command: Command) -> Command {
        let words = Arg::new("changes")
            .value_name("CHANGE")
            .required(true)
            .num_args(1..)
            .allow_negative_numbers(true);
        command.arg(words.help("What is to be changed, see below"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_be_combined() {
        let parse = |text: &str| Changes::parse(text.split(' ')).map(|Changes(set)| set);
        let nothing = Set::of(Address::Name(Name::default()));
        assert_eq!(parse("up"), Ok(Set { link: Some(Link::Up), ..nothing.clone() }));
        assert_eq!(
            parse("mtu 1400 down name a\\x20b carrier off mac 2:0:0:0:0:1 txqueuelen 5"),
            Ok(Set {
                link: Some(Link::Down),
                mtu: Some(1400),
                mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
                name: Some(Name::new(b"a b")),
                carrier: Some(Carrier::Off),
                txqueuelen: Some(5),
                ..nothing
            })
        );
        for (text, hint) in [
            ("sideways", "is not a change"),
            ("up mtu", "needs a value"),
            ("mtu large", "takes a number"),
            ("txqueuelen -1", "takes a number"),
            ("mac 02:00", "not an Ethernet address"),
            ("name 0123456789abcdef", "1 to 15 bytes"),
            ("carrier up", "on or off"),
            ("up down", "up or down may be given once"),
            ("mtu 1400 mtu 1300", "mtu may be given once"),
            ("carrier on up carrier off", "carrier may be given once"),
            ("name a name b", "name may be given once"),
            ("mac 2:0:0:0:0:1 mac 2:0:0:0:0:2", "mac may be given once"),
            ("txqueuelen 5 txqueuelen 5", "txqueuelen may be given once"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
