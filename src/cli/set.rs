//! `memtun set`

use clap::{Arg, ArgMatches, Command, FromArgMatches};
use memtun_client::proto::set::{Carrier, Done, Link, Set};

use super::{Scene, VerbError, usage_error};
use crate::core::{Address, MacAddress, parse_name};

/// Changes a tunnel, as 'ip link set' changes an interface. It makes all the changes or none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Changes, each at most once, in any order:
  up | down
          While a tunnel is down, writes get EIO and poll gives no POLLOUT. The client can still read what is queued
  carrier on|off
          Without carrier nothing reaches the client. Its writes succeed
  mtu N
          68 to 65535; of a tap, to 65521
  mac ADDRESS
          The Ethernet address of a tap
  name NAME
          A name, or a template such as tun%d
  txqueuelen N
          How many datagrams a queue holds. If more are in it, the newest are lost. As in the kernel, they are not counted as dropped")]
pub(super) struct Args {
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
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let Changes(changes) = self.changes;
        let Done {} =
            scene.connect()?.call(&Set { tunnel: self.tunnel.to_string().into(), ..changes })?;
        Ok(())
    }
}

/// The words after the tunnel, as `ip` takes them, parsed; the tunnel in it says nothing.
#[derive(Debug)]
struct Changes(Set);

impl Changes {
    fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut set = Set::new("");
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word {
                "up" => once("up or down", &mut set.link, Link::Up)?,
                "down" => once("up or down", &mut set.link, Link::Down)?,
                "mtu" => once(word, &mut set.mtu, number(word, value()?)?)?,
                "txqueuelen" => once(word, &mut set.txqueuelen, number(word, value()?)?)?,
                "mac" => {
                    let address: MacAddress = value()?.parse()?;
                    once(word, &mut set.mac, address.to_string().into())?;
                }
                "name" => once(word, &mut set.name, parse_name(value()?)?.to_string().into())?,
                "carrier" => {
                    let carrier = match value()? {
                        "on" => Carrier::On,
                        "off" => Carrier::Off,
                        other => return Err(format!("carrier is on or off, not {other:?}")),
                    };
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
        command.arg(words.help("A change, as listed below"))
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
        let nothing = Set::new("");
        assert_eq!(parse("up"), Ok(Set { link: Some(Link::Up), ..nothing.clone() }));
        assert_eq!(
            parse("mtu 1400 down name a\\x20b carrier off mac 2:0:0:0:0:1 txqueuelen 5"),
            Ok(Set {
                link: Some(Link::Down),
                mtu: Some(1400),
                mac: Some("02:00:00:00:00:01".into()),
                name: Some("a b".into()),
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
