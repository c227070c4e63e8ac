//! What people read has sentences that can be taken in at once: documents, help texts and messages. No sentence is longer than a
//! limit, in words. A piece of code is one word, and each item of a list and each cell of a table stands alone.

use std::{
    fs, iter,
    ops::Range,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory};
use memtun::cli::Cli;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

pub const TESTS: &[(&str, fn())] = &[
    ("documents_have_short_sentences", documents_have_short_sentences),
    ("help_has_short_sentences", help_has_short_sentences),
    ("messages_have_short_sentences", messages_have_short_sentences),
    ("sentences_end_where_a_reader_pauses", sentences_end_where_a_reader_pauses),
    ("long_sentences_are_found", long_sentences_are_found),
];

const DOCUMENT_WORDS: usize = 30;
const HELP_WORDS: usize = 25;
const MESSAGE_WORDS: usize = 25;

/// Stands for a space in code, so that the code is one word.
const SPACE_IN_CODE: char = '\u{a0}';

/// Text between two breaks: a paragraph, an item, a cell, a message.
struct Block {
    /// Such as `README.md:12`.
    place: String,
    text: String,
}

impl Block {
    /// The sentences of more than `limit` words, one a line, with their place.
    fn too_long(&self, limit: usize) -> impl Iterator<Item = String> {
        sentences(&self.text)
            .map(|range| &self.text[range])
            .map(|sentence| (words(sentence), sentence))
            .filter(move |(words, _)| *words > limit)
            .map(|(words, sentence)| format!("{}: {words} words: {sentence}\n", self.place))
    }
}

/// Where each sentence of a text is.
fn sentences(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    iter::from_fn(move || {
        let from = start + text[start..].find(|letter: char| !letter.is_ascii_whitespace())?;
        start = end_of_sentence(text, from);
        Some(from..start)
    })
}

fn end_of_sentence(text: &str, from: usize) -> usize {
    let ends = text[from..].match_indices(['.', '!', '?']).map(|(at, _)| from + at);
    let closed = ends.filter(|end| !text[..*end].ends_with('.')).map(|end| {
        let rest = text[end + 1..].trim_start_matches([')', ']', '"', '\'', '*']);
        text.len() - rest.len()
    });
    let mut pauses = closed.filter(|end| {
        text[*end..].chars().next().is_none_or(|letter| letter.is_ascii_whitespace())
    });
    pauses.next().unwrap_or(text.len())
}

fn words(sentence: &str) -> usize {
    let is_word =
        |word: &&str| word.contains(|letter: char| letter.is_alphanumeric() || letter == '{');
    sentence.split_ascii_whitespace().filter(is_word).count()
}

/// The prose of a Markdown document, without its blocks of code. Each sentence is a block, for its line's sake.
fn prose_of_document(name: &str, document: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let (mut text, mut offsets) = (String::new(), Vec::new());
    let mut end_block = |text: &mut String, offsets: &mut Vec<(usize, usize)>| {
        for sentence in sentences(text) {
            let piece = offsets.partition_point(|(at, _)| *at <= sentence.start) - 1;
            let (at, offset) = offsets[piece];
            let line = 1 + document[..offset + sentence.start - at].matches('\n').count();
            found.push(Block { place: format!("{name}:{line}"), text: text[sentence].to_owned() });
        }
        text.clear();
        offsets.clear();
    };
    let mut is_code = false;
    for (event, range) in Parser::new_ext(document, Options::ENABLE_TABLES).into_offset_iter() {
        let piece = match event {
            Event::Text(piece) if !is_code => piece.into_string(),
            Event::Code(piece) => piece.replace(' ', &SPACE_IN_CODE.to_string()),
            Event::SoftBreak | Event::HardBreak => " ".to_owned(),
            Event::Start(Tag::CodeBlock(_)) => {
                is_code = true;
                continue;
            }
            Event::End(TagEnd::CodeBlock) => {
                is_code = false;
                continue;
            }
            Event::Start(Tag::Link { .. } | Tag::Emphasis | Tag::Strong)
            | Event::End(TagEnd::Link | TagEnd::Emphasis | TagEnd::Strong) => continue,
            Event::Start(_)
            | Event::End(_)
            | Event::Text(_)
            | Event::Html(_)
            | Event::InlineHtml(_)
            | Event::InlineMath(_)
            | Event::DisplayMath(_)
            | Event::FootnoteReference(_)
            | Event::Rule
            | Event::TaskListMarker(_) => {
                end_block(&mut text, &mut offsets);
                continue;
            }
        };
        offsets.push((text.len(), range.start));
        text.push_str(&piece);
    }
    end_block(&mut text, &mut offsets);
    found
}

/// What `--help` says, of a command and of those below it.
fn prose_of_help(command: &Command) -> Vec<Block> {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let of_command = [
        command.get_about(),
        command.get_long_about(),
        command.get_before_help(),
        command.get_after_help(),
        command.get_after_long_help(),
    ];
    let of_command = of_command.into_iter().flatten().map(|text| (String::new(), text.to_string()));
    let of_arguments = command.get_arguments().flat_map(|argument| {
        let values = argument.get_possible_values();
        let texts = [argument.get_help(), argument.get_long_help()];
        let texts = texts.into_iter().flatten().map(ToString::to_string);
        let of_values = values.iter().filter_map(|value| Some(value.get_help()?.to_string()));
        let texts = texts.chain(of_values).collect::<Vec<_>>();
        texts.into_iter().map(|text| (format!(" {}", argument.get_id()), text))
    });
    let mut found = of_command
        .chain(of_arguments)
        .flat_map(|(argument, text)| {
            let place = format!("{name} --help{argument}");
            text.lines()
                .map(|line| Block { place: place.clone(), text: line.to_owned() })
                .collect::<Vec<_>>()
        })
        .collect::<Vec<_>>();
    found.extend(command.get_subcommands().flat_map(prose_of_help));
    found
}

/// The string literals of a Rust source, without those of comments and of tests. Messages are among them, wherever they are
/// made.
fn prose_of_source(name: &str, tokens: TokenStream) -> Vec<Block> {
    let mut found = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Literal(literal) => {
                let place = format!("{name}:{}", literal.span().start().line);
                if let Some(text) = unescaped(&literal.to_string()) {
                    found.extend(
                        text.lines()
                            .map(|line| Block { place: place.clone(), text: line.to_owned() }),
                    );
                }
            }
            TokenTree::Group(group) => {
                let stream = group.stream();
                let content = stream.to_string();
                let is_attribute = group.delimiter() == Delimiter::Bracket;
                if is_attribute && content.replace(' ', "") == "cfg(test)" {
                    let is_end = |token: &TokenTree| match token {
                        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                        TokenTree::Punct(mark) => mark.as_char() == ';',
                        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
                    };
                    tokens.by_ref().find(is_end);
                } else if !(is_attribute && content.starts_with("doc ")) {
                    found.extend(prose_of_source(name, stream));
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
    found
}

/// What a literal stands for, if it is a string. Of the escapes those that matter here: a line break, and one that is left out.
fn unescaped(literal: &str) -> Option<String> {
    if literal.starts_with('r') {
        return Some(literal.trim_matches(['r', '#', '"']).to_owned());
    }
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut pieces = inner.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    let joined = pieces.fold(first, |text, piece| text + piece.trim_start());
    Some(joined.replace("\\n", "\n"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below some folders whose names end so, by their paths from the root, and their texts.
fn files(folders: &[&str], extension: &str) -> Vec<(String, String)> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|found| found == extension) {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[track_caller]
fn check(blocks: &[Block], limit: usize) {
    let long: Vec<String> = blocks.iter().flat_map(|block| block.too_long(limit)).collect();
    assert!(
        long.is_empty(),
        "{} sentences have more than {limit} words; make two of each, or a list:\n{}",
        long.len(),
        long.concat()
    );
}

/// The blocks come from each of these places.
#[track_caller]
fn covers(blocks: &[Block], places: &[&str]) {
    for place in places {
        assert!(blocks.iter().any(|block| block.place.starts_with(place)), "{place} has prose");
    }
}

fn documents_have_short_sentences() {
    let documents = files(&["README.md", "CHANGELOG.md", "docs", "cuse-rs/README.md"], "md");
    let blocks: Vec<Block> =
        documents.iter().flat_map(|(name, text)| prose_of_document(name, text)).collect();
    covers(&blocks, &["README.md:", "CHANGELOG.md:", "docs/control.md:", "cuse-rs/README.md:"]);
    check(&blocks, DOCUMENT_WORDS);
}

fn help_has_short_sentences() {
    let mut command = Cli::command();
    command.build();
    let blocks = prose_of_help(&command);
    covers(&blocks, &["memtun --help", "memtun --help control", "memtun run --help net"]);
    check(&blocks, HELP_WORDS);
}

fn messages_have_short_sentences() {
    let sources = files(&["src", "client/src", "core/src", "cuse-rs/src", "proto/src"], "rs");
    let blocks: Vec<Block> = sources
        .iter()
        .flat_map(|(name, text)| prose_of_source(name, text.parse().expect("a source is Rust")))
        .collect();
    covers(
        &blocks,
        &["client/src/error.rs:", "core/src/machine/harness.rs:", "cuse-rs/src/cuse/error.rs:"],
    );
    check(&blocks, MESSAGE_WORDS);
}

fn sentences_end_where_a_reader_pauses() {
    let text = "It is Linux 6.18. Does `ip` (or ifconfig...) do it? See tun.c (\"it does.\") \
                memtun, too; done";
    let found: Vec<&str> = sentences(text).map(|range| &text[range]).collect();
    assert_eq!(
        found,
        [
            "It is Linux 6.18.",
            "Does `ip` (or ifconfig...) do it?",
            "See tun.c (\"it does.\")",
            "memtun, too; done"
        ]
    );
    assert_eq!(words("of {name} - 3 words, `a\u{a0}b` and more"), 7);
}

fn long_sentences_are_found() {
    let long = "one two three four five six.";
    let places = |blocks: &[Block]| -> Vec<String> {
        let long = blocks.iter().flat_map(|block| block.too_long(5));
        long.map(|found| found.split(": 6 words: one two").next().unwrap().to_owned()).collect()
    };
    let document = format!(
        "# Title\n\nShort. And:\n\n- a\n- b {long}\n\n```\n{long}\n```\n\n| {long} |\n| --- |\n| a b |\n\nSix words\nof `one two three` here. one\ntwo three four\nfive six. Short"
    );
    let blocks = prose_of_document("a.md", &document);
    assert_eq!(
        places(&blocks),
        ["a.md:6: 7 words: b one two three four five six.\n", "a.md:12", "a.md:17"]
    );

    let command = Command::new("a")
        .about(long)
        .subcommand(Command::new("b").arg(clap::Arg::new("c").help(format!("Short. {long}"))));
    assert_eq!(places(&prose_of_help(&command)), ["a --help", "b --help c"]);

    let source = format!(
        "/// {long}\n#[error(\"{long}\")]\nfn a() {{ warn!(b, \"one two \\\n  three four five six\") }} // {long}\n#[cfg(test)]\nmod tests {{ const A: &str = \"{long}\"; }}\n"
    );
    assert_eq!(places(&prose_of_source("a.rs", source.parse().unwrap())), ["a.rs:2", "a.rs:3"]);
}
