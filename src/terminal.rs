//! Text for terminals: the one place that decides what a terminal may be sent.
//!
//! A client chooses its command name, the names of its tunnels and the bytes of its datagrams. Printed as they are, they could move
//! the cursor, change the window's title or hide text. So all text for people passes through [`escaped`], and JSON through
//! [`escaped_json`]. They show a control character as text, so that the terminal does not obey it. Colours go around such text,
//! and only where [`Styles`] allows them.
//!
//! The characters are those of Unicode's categories Cc, Cf (with the bidirectional controls, see UAX 9), Zl and Zp.

use std::{borrow::Cow, fmt::Write as _};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Style};

/// A terminal obeys it, or it changes how the text around it is shown.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Text on one line that a terminal only shows: `\x1b` stands for the byte, `\u{202e}` for the character.
#[must_use]
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |character, out| {
        // A String takes all that is written.
        let _written = match u32::from(character) {
            number @ 0..0x80 => write!(out, "\\x{number:02x}"),
            number => write!(out, "\\u{{{number:x}}}"),
        };
    })
}

/// JSON that a terminal only shows; it says the same. Its line ends stay.
#[must_use]
pub(crate) fn escaped_json(json: &str) -> Cow<'_, str> {
    replaced(json, |character, out| match character {
        // Outside strings; inside, serde_json has escaped it.
        '\n' => out.push('\n'),
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _written = write!(out, "\\u{unit:04x}");
            }
        }
    })
}

fn replaced(text: &str, replace: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            replace(character, &mut out);
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// Bytes as text: what is no UTF-8 is written `\xNN`.
#[must_use]
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _written = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The styles of what stands out. [`Default`] has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Styles {
    /// The head of a table.
    pub head: Style,
    /// What is not as usual.
    pub warning: Style,
    /// What failed.
    pub error: Style,
}

impl Styles {
    /// Those for a stream: colours only on a terminal that shows them, and only if neither `NO_COLOR` nor `TERM=dumb` says
    /// otherwise. clap decides by the same rule.
    pub(crate) fn of(stream: &impl RawStream) -> Self {
        match AutoStream::choice(stream) {
            _ if is_dumb() => Self::default(),
            ColorChoice::Never => Self::default(),
            ColorChoice::Auto | ColorChoice::AlwaysAnsi | ColorChoice::Always => Self {
                head: Style::new().bold(),
                warning: AnsiColor::Yellow.on_default(),
                error: AnsiColor::Red.on_default().bold(),
            },
        }
    }
}

/// The terminal shows no colours. anstream and clap give it some all the same where `CI` is set.
pub(crate) fn is_dumb() -> bool {
    let is_forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|force| force != "0");
    !is_forced && std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, shown) in [
            ("any-tun-program", "any-tun-program"),
            ("Grüße, 世界 \\ é", "Grüße, 世界 \\ é"),
            ("\x1b]0;evil\x07\x1b[2J", "\\x1b]0;evil\\x07\\x1b[2J"),
            ("one\r\ntwo\t", "one\\x0d\\x0atwo\\x09"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\x7f"),
            ("user\u{202e}toor\u{2066}", "user\\u{202e}toor\\u{2066}"),
            ("\u{e0041}\u{feff}\u{2028}", "\\u{e0041}\\u{feff}\\u{2028}"),
        ] {
            assert_eq!(escaped(text), shown);
            assert_eq!(escaped(shown), shown, "once is enough");
        }
    }

    #[test]
    fn json_says_the_same() {
        let text = "\x1b[2J\n\u{9b}\u{202e}\u{e0041}ü\"\\";
        let json = serde_json::to_string_pretty(&[text]).unwrap();
        let shown = escaped_json(&json);
        assert!(shown.chars().all(|c| c == '\n' || !is_unsafe(c)), "{shown}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
        assert!(shown.contains("\\u009b\\u202e\\udb40\\udc41ü"), "{shown}");
    }

    #[test]
    fn bytes_become_text() {
        assert_eq!(text_of("gr\u{fc}n".as_bytes()), "grün");
        assert_eq!(text_of(b"a\xff\xc3b\xe2\x82"), "a\\xff\\xc3b\\xe2\\x82");
    }
}
