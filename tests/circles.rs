//! Modules of one crate name each other in one direction, but within a folder. Between crates the compiler holds it.
//!
//! A module is a file. What a folder has, its `mod.rs` or the file of its name included, counts as one. A file depends on
//! what its code names, also in expressions and in macros, but for its tests; a name that a module only passes on (`use`)
//! stands for what it leads to, so the root of a crate may offer what is below it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most kinds of items and tokens are treated alike"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, File, Item, UseTree, Visibility};

pub const TESTS: &[(&str, fn())] = &[
    ("modules_make_no_circle", modules_make_no_circle),
    ("planted_circles_are_found", planted_circles_are_found),
];

/// A path from the root of the crate: of a module, or of something in one.
type Names = Vec<String>;

/// The sources of a crate, by module.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Names, File>,
}

impl Crate {
    /// All below a folder, which has `lib.rs`.
    fn read(source: &Path) -> Self {
        let mut found = Self::default();
        let mut open = vec![source.to_owned()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path != source.join("main.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                found.add(path.strip_prefix(source).unwrap(), &text);
            }
        }
        found
    }

    fn add(&mut self, path: &Path, text: &str) {
        let file = path.with_extension("");
        let mut module: Names = file.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        self.modules.insert(module, file);
    }

    /// Which modules each module depends on.
    fn edges(&self) -> BTreeMap<Names, BTreeSet<Names>> {
        let tests = self.files_for_tests();
        let code: Vec<&Names> = self
            .modules
            .keys()
            .filter(|module| !tests.iter().any(|test| module.starts_with(test)))
            .collect();
        let uses: BTreeMap<&Names, Uses> = code
            .iter()
            .map(|module| {
                let mut uses =
                    Uses { modules: &code, named: BTreeSet::new(), passed_on: BTreeMap::new() };
                uses.read_items(&self.modules[*module].items, module);
                (*module, uses)
            })
            .collect();
        let leads_to = |names: &Names| {
            let mut names = names.clone();
            // A name may be passed on by one module after another, but not for ever.
            for _ in 0..=uses.len() {
                let depth = (0..=names.len())
                    .rev()
                    .find(|depth| uses.contains_key(&names[..*depth].to_vec()));
                let depth = depth.expect("the root is a module");
                let module = names[..depth].to_vec();
                match names.get(depth).and_then(|name| uses[&module].passed_on.get(name)) {
                    Some(next) if *next != names[..=depth] => {
                        names = [&next[..], &names[depth + 1..]].concat();
                    }
                    Some(_) | None => return module,
                }
            }
            panic!("{names:?} leads to itself");
        };
        uses.iter()
            .map(|(module, uses)| {
                let targets = uses.named.iter().map(leads_to);
                ((*module).clone(), targets.filter(|target| target != *module).collect())
            })
            .collect()
    }

    /// Modules of files that are there for tests alone: `#[cfg(test)] mod NAME;`.
    fn files_for_tests(&self) -> Vec<Names> {
        let files = self.modules.iter();
        let items =
            files.flat_map(|(module, file)| file.items.iter().map(move |item| (module, item)));
        let for_tests = items.filter_map(|(module, item)| match item {
            Item::Mod(inner) if is_for_tests(&inner.attrs) => Some(below(module, &inner.ident)),
            _ => None,
        });
        for_tests.collect()
    }

    /// The circles among what stands at the top of the crate: those who lead to each other.
    fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let top = |names: &Names| names.first().map_or("lib", String::as_str).to_owned();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, targets) in self.edges() {
            let others = targets.iter().map(top).filter(|target| *target != top(&module));
            edges.entry(top(&module)).or_default().extend(others);
        }
        let reached: BTreeMap<&String, BTreeSet<&String>> =
            edges.keys().map(|module| (module, reached_from(module, &edges))).collect();
        let circle = |module: &String| -> BTreeSet<String> {
            let both = reached[module].iter().filter(|other| reached[**other].contains(module));
            both.map(|other| (*other).clone()).collect()
        };
        edges.keys().map(circle).filter(|circle| !circle.is_empty()).collect()
    }
}

fn reached_from<'a>(
    module: &str,
    edges: &'a BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&String> = edges.get(module).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(edges.get(next).into_iter().flatten());
        }
    }
    reached
}

/// What a module names, and what it passes on.
struct Uses<'a> {
    modules: &'a [&'a Names],
    named: BTreeSet<Names>,
    passed_on: BTreeMap<String, Names>,
}

impl Uses<'_> {
    fn read_items(&mut self, items: &[Item], module: &[String]) {
        for item in items {
            match item {
                item if is_for_tests(attributes(item)) => {}
                Item::Mod(inner) => {
                    let items = inner.content.iter().flat_map(|(_, items)| items);
                    let items: Vec<Item> = items.cloned().collect();
                    self.read_items(&items, &below(module, &inner.ident));
                }
                Item::Use(item) => {
                    // The root offers what is below it without a need of its own.
                    let is_offer = module.is_empty() && !matches!(item.vis, Visibility::Inherited);
                    for (shown, names) in names_of(&item.tree, &[]) {
                        let Some(names) = self.absolute(&names, module) else { continue };
                        if !is_offer {
                            self.named.insert(names.clone());
                        }
                        self.passed_on.insert(shown, names);
                    }
                }
                other => self.read_tokens(other.to_token_stream(), module),
            }
        }
    }

    /// Paths in code, which begin at the root, here or above; imports of a function among them.
    fn read_tokens(&mut self, tokens: TokenStream, module: &[String]) {
        let mut path: Names = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1
                }
                TokenTree::Ident(ident) if colons == 2 => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    let list = if let TokenTree::Group(group) = &other
                        && colons == 2
                    {
                        syn::parse2::<UseTree>(group.to_token_stream()).ok()
                    } else {
                        None
                    };
                    let ended = std::mem::take(&mut path);
                    match list {
                        Some(tree) => {
                            let listed = names_of(&tree, &ended).into_iter();
                            let listed =
                                listed.filter_map(|(_, names)| self.absolute(&names, module));
                            self.named.extend(listed.collect::<Vec<_>>());
                        }
                        None => self.name(&ended, module),
                    }
                    colons = 0;
                    match other {
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Group(group) => self.read_tokens(group.stream(), module),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                }
            }
        }
        self.name(&path, module);
    }

    /// A word alone names nothing elsewhere: `pub(crate)`.
    fn name(&mut self, names: &[String], module: &[String]) {
        if names.len() > 1 {
            self.named.extend(self.absolute(names, module));
        }
    }

    /// A path as it is from the root of the crate; `None` if it leads out of the crate, or is a name of this module.
    fn absolute(&self, names: &[String], module: &[String]) -> Option<Names> {
        let (first, rest) = names.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" if !rest.is_empty() => Some([module, rest].concat()),
            "super" => {
                let (_, above) = module.split_last()?;
                match rest.first().map(String::as_str) {
                    Some("super") => self.absolute(rest, above),
                    _ => Some([above, rest].concat()),
                }
            }
            _ => {
                let child = below(module, first);
                self.modules.contains(&&child).then(|| [&child[..], rest].concat())
            }
        }
    }
}

/// What an import brings: by which name, and what it is. All that a module has goes by no name.
fn names_of(tree: &UseTree, before: &[String]) -> Vec<(String, Names)> {
    let leads_to =
        |ident: &Ident| if ident == "self" { before.to_vec() } else { below(before, ident) };
    match tree {
        UseTree::Path(path) => names_of(&path.tree, &below(before, &path.ident)),
        UseTree::Name(name) => {
            let names = leads_to(&name.ident);
            vec![(names.last().cloned().unwrap_or_default(), names)]
        }
        UseTree::Rename(name) => vec![(name.rename.to_string(), leads_to(&name.ident))],
        UseTree::Glob(_) => vec![("*".to_owned(), before.to_vec())],
        UseTree::Group(group) => {
            group.items.iter().flat_map(|tree| names_of(tree, before)).collect()
        }
    }
}

fn below(module: &[String], name: impl ToString) -> Names {
    [module, &[name.to_string()]].concat()
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.to_token_stream().to_string().contains("test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn modules_make_no_circle() {
    for source in ["src", "client/src", "core/src", "cuse-rs/src", "proto/src"] {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
        let circles = Crate::read(&path).circles();
        assert!(circles.is_empty(), "{source}: {circles:#?}");
    }
}

fn planted(files: &[(&str, &str)]) -> Crate {
    let mut planted = Crate::default();
    files.iter().for_each(|(path, text)| planted.add(Path::new(path), text));
    planted
}

fn planted_circles_are_found() {
    let root = ("lib.rs", "mod a; mod b; mod c; pub use a::A;");
    let circles = |a: &str, b: &str| {
        let files =
            [root, ("a.rs", a), ("b/mod.rs", "mod d; pub use d::D;"), ("b/d.rs", b), ("c.rs", "")];
        planted(&files).circles()
    };
    let none = BTreeSet::new();
    let found = BTreeSet::from([BTreeSet::from(["a".to_owned(), "b".to_owned()])]);
    let to_b = [
        "use crate::b::D;",
        "use crate::{c::{self, C}, b::{d::{E, F}}};",
        "use super::b as other;",
        "use crate::b::*;",
        "fn f() -> usize { crate::b::d::MAX }",
        "fn f() { use crate::{b::D, c::C}; }",
        "fn f() { println!(\"{}\", [crate::b::MAX]); }",
        "impl crate::b::D { const N: u8 = 1; }",
        "mod inner { use super::super::b::D; }",
    ];
    let to_a = [
        "use crate::a::A;",
        "use crate::A;",
        "use super::super::A;",
        "fn f() { crate::A::new() }",
        "macro_rules! m { () => { $crate::a::A } }",
    ];
    for b in to_a {
        assert_eq!(circles("", b), none, "{b}");
        assert_eq!(circles("use crate::c::C;", b), none, "{b}");
        for a in to_b {
            assert_eq!(circles(a, b), found, "{a} and {b}");
        }
    }
    for a in [
        "pub(crate) fn f() {}",
        "#[cfg(test)] mod tests { use crate::b::D; }",
        "use std::{b, c};",
        "// crate::b::D",
    ] {
        assert_eq!(circles(a, to_a[0]), none, "{a}");
    }
    assert_eq!(
        circles("", "use super::E; fn f() { super::super::b::d::f() }"),
        none,
        "within a folder"
    );
    let tests_in_a_file = [
        ("lib.rs", "mod a; #[cfg(test)] mod tests;"),
        ("a.rs", "pub struct A;"),
        ("tests.rs", "use crate::a::A;"),
    ];
    assert_eq!(planted(&tests_in_a_file).circles(), none);
    let of_root = [("lib.rs", "mod a; use a::A; pub struct B(A);"), ("a.rs", "use crate::B;")];
    let found = BTreeSet::from([BTreeSet::from(["a".to_owned(), "lib".to_owned()])]);
    assert_eq!(planted(&of_root).circles(), found);
}
