//! No cycles between the files of the rules and of the stream tasks: a reader can start with a file that uses no other.
//!
//! A file uses another one if a path that begins with `super`, `self` or `crate` names it or an item that it defines. A
//! re-export (`pub use self::child::Item`) stands for the file with the item.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::sources::{code, root, rust_files};

/// Folders whose files use each other without cycles, in the sources of their crate.
const ACYCLIC: [(&str, &str); 2] = [("crates/core/src", "protocol"), ("src", "upstream")];

/// A module as the segments of its path.
type Module = Vec<String>;

/// The paths in a text that begin with `super`, `self` or `crate`, with their braces expanded.
fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut paths, mut rest) = (Vec::new(), code);
    while let Some(at) = ["super::", "self::", "crate::"].iter().filter_map(|start| rest.find(start)).min() {
        let before = &rest[..at];
        let is_start = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        rest = if is_start && !before.ends_with("(in ") {
            expand(&rest[at..], &[], &mut paths)
        } else {
            &rest[at + "self::".len()..]
        };
    }
    paths
}

/// Reads one path, or a list of paths in braces, and returns the rest of the text.
fn expand<'a>(text: &'a str, before: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, before, paths).trim_start();
            rest = rest.trim_start_matches(|c: char| !matches!(c, ',' | '}' | '{'));
            match rest.strip_prefix(',') {
                Some(next) if !next.trim_start().starts_with('}') => rest = next,
                _ => return rest.split_once('}').map_or("", |(_, rest)| rest),
            }
        }
    }
    let len = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path = [before, &[text[..len].to_owned()]].concat();
    match text[len..].strip_prefix("::") {
        Some(rest) => expand(rest, &path, paths),
        None => {
            paths.push(path);
            &text[len..]
        }
    }
}

/// The files of a folder and their modules; the parent module is the file next to the folder.
struct Files {
    code: BTreeMap<Module, String>,
}

impl Files {
    fn of(sources: &str, folder: &str) -> Self {
        let base = root().join(sources);
        let parent = base.join(format!("{folder}.rs"));
        let files = rust_files(&base.join(folder)).into_iter().chain([parent]);
        let code = files.map(|file| (module(file.strip_prefix(&base).unwrap()), code(&file)));
        Self { code: code.filter(|(module, _)| !module.iter().any(|part| part == "tests")).collect() }
    }

    /// The module with the item of a path, if it is one of these files.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<Module> {
        let mut module = from.clone();
        for (index, segment) in path.iter().enumerate() {
            match segment.as_str() {
                "crate" => module.clear(),
                "self" => (),
                "super" => _ = module.pop(),
                name => {
                    let child = [module.as_slice(), &[name.to_owned()]].concat();
                    let is_prefix = self.code.keys().any(|known| known.starts_with(&child));
                    if !is_prefix {
                        return self.definer(module, &path[index]);
                    }
                    module = child;
                }
            }
        }
        self.code.contains_key(&module).then_some(module)
    }

    /// The module that defines an item which this module has, perhaps as a re-export.
    fn definer(&self, module: Module, item: &String) -> Option<Module> {
        let code = self.code.get(&module)?;
        let exports = code.split("use self::").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
        let mut exported = Vec::new();
        for list in exports {
            expand(list, &["self".to_owned()], &mut exported);
        }
        match exported.into_iter().find(|path| path.last() == Some(item) && path.len() > 2) {
            Some(path) => self.resolve(&module, &path),
            None => Some(module),
        }
    }

    fn uses(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let edges = self.code.iter().map(|(module, code)| {
            let used = paths(code).into_iter().filter_map(|path| self.resolve(module, &path));
            (module.clone(), used.filter(|used| used != module).collect())
        });
        edges.collect()
    }
}

fn module(file: &Path) -> Module {
    let parts = file.with_extension("");
    parts.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The modules that are left after those which use no other are taken away, again and again.
fn in_cycles(mut uses: BTreeMap<Module, BTreeSet<Module>>) -> BTreeMap<Module, BTreeSet<Module>> {
    loop {
        let free: Vec<Module> =
            uses.iter().filter(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()).collect();
        if free.is_empty() {
            return uses;
        }
        uses.retain(|module, _| !free.contains(module));
        uses.values_mut().for_each(|used| used.retain(|module| !free.contains(module)));
    }
}

#[test]
fn the_files_of_a_machine_use_each_other_without_cycles() {
    for (sources, folder) in ACYCLIC {
        let files = Files::of(sources, folder);
        assert!(files.code.len() > 3, "{folder} has files");
        let cycles = in_cycles(files.uses());
        assert!(cycles.is_empty(), "{folder}: these files use each other in a cycle: {cycles:#?}");
    }
}

#[test]
fn paths_are_expanded_and_cycles_found() {
    let code = "use super::{a::B, self, c::{D, e}};\npub(in crate::x) struct F(crate::g::H);";
    let found: Vec<String> = paths(code).into_iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["super::a::B", "super::self", "super::c::D", "super::c::e", "crate::g::H"]);
    let module = |name: &str| vec![name.to_owned()];
    let uses = |used: &[&str]| used.iter().map(|name| module(name)).collect::<BTreeSet<Module>>();
    let edges = [("a", uses(&["b"])), ("b", uses(&["a", "c"])), ("c", uses(&[])), ("d", uses(&["c"]))];
    let left = in_cycles(edges.into_iter().map(|(name, used)| (module(name), used)).collect());
    assert_eq!(left.into_keys().collect::<Vec<_>>(), [module("a"), module("b")]);
}
