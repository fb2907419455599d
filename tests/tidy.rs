//! The shape of the sources: layers, sizes, words.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the runtime from the bottom up. A module imports from its own layer and those
/// below.
const LAYERS: [&[&str]; 7] = [
    &[
        "sys", "sync", "cpus", "config", "contain", "notice", "fork", "ticks", "board", "trace",
        "sim", "no_sim", "ring", "choices", "seen",
    ],
    &["executor", "timers", "buf", "fd", "resident_key", "waiters"],
    &["driver", "error", "stall"],
    &["shard", "crew", "resident", "meter"],
    &[
        "op",
        "multishot",
        "receive",
        "datagrams",
        "io",
        "time",
        "blocking",
        "task",
        "join_set",
        "shards",
        "runtime",
        "metrics",
        "signal",
        "shutdown",
        "fs",
        "tokio_context",
        "simulation",
    ],
    &["doctor"],
    &["fuzzing"],
];
/// Past this a file is two ideas.
const LINES_MAX: usize = 600;
const FACADE_LINES_MAX: usize = 150;
const WIDTH_MAX: usize = 100;
// Written in parts, so that this file does not fail itself.
const FORBIDDEN: [&str; 7] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("unreachable", "_unchecked"),
];

#[test]
fn imports_of_the_runtime_point_down() {
    let root = workspace().join("runtime/src");
    let mut upward = Vec::new();
    for file in sources(&root) {
        let path = file.strip_prefix(&root).expect("under the root");
        let module = top_module(path);
        // The crate's root names everything; that is its work. Tests use what they need.
        let is_tests = path.iter().any(|part| part == "tests" || part == "tests.rs");
        if module == "lib" || is_tests {
            continue;
        }
        let Some(layer) = layer(&module) else {
            upward.push(format!("{} is in no layer of tests/tidy.rs", path.display()));
            continue;
        };
        let text = fs::read_to_string(&file).expect("read a source file");
        for (number, line) in production_lines(&text) {
            for used in crate_modules(line) {
                match self::layer(&used) {
                    Some(below) if below <= layer => {}
                    Some(_) => upward.push(format!("{}:{number}: {line}", path.display())),
                    None => upward.push(format!("{}:{number}: {used}?", path.display())),
                }
            }
        }
    }
    assert!(upward.is_empty(), "imports that point up:\n{}", upward.join("\n"));
}

#[test]
fn the_layers_name_modules_that_exist() {
    let root = workspace().join("runtime/src");
    for module in LAYERS.concat() {
        let file = root.join(format!("{module}.rs"));
        let folder = root.join(module).join("mod.rs");
        assert!(file.exists() || folder.exists(), "tests/tidy.rs names {module}, which is gone");
    }
}

#[test]
fn only_the_facade_and_the_net_know_what_is_above_the_runtime() {
    let root = workspace();
    for (folder, crates) in [
        ("runtime/src", ["annulus_net", "annulus::"]),
        ("net/src", ["annulus::", "annulus_macros"]),
    ] {
        for file in sources(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("read a source file");
            for (number, line) in production_lines(&text) {
                for above in crates {
                    let named = line.split(above).next().is_some_and(|before| {
                        before.len() < line.len() && !before.ends_with(is_identifier)
                    });
                    // Texts for the user name what the user calls.
                    let quoted = line.contains('"');
                    assert!(!named || quoted, "{}:{number}: {line}", file.display());
                }
            }
        }
    }
}

#[test]
fn files_are_one_idea() {
    let root = workspace();
    let mut large = Vec::new();
    for folder in ["src", "runtime", "net", "examples", "tests", "benches"] {
        for file in sources(&root.join(folder)) {
            let lines = fs::read_to_string(&file).expect("read a source file").lines().count();
            // A file of tests is a list; it has no second idea to hide.
            let is_tests = file.ends_with("tests.rs") || file.starts_with(root.join("tests"));
            if lines > LINES_MAX && !is_tests {
                large.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(large.is_empty(), "over {LINES_MAX} lines:\n{}", large.join("\n"));
}

#[test]
fn the_facade_only_names_what_is_elsewhere() {
    let text = fs::read_to_string(workspace().join("src/lib.rs")).expect("read the facade");
    assert!(text.lines().count() < FACADE_LINES_MAX, "the facade has become a place of its own");
    for (number, line) in production_lines(&text) {
        let item = ["fn ", "struct ", "enum ", "trait ", "impl "]
            .iter()
            .any(|word| line.trim_start().trim_start_matches("pub ").starts_with(word));
        assert!(!item, "src/lib.rs:{number} is more than a re-export: {line}");
    }
}

#[test]
fn sources_hold_no_forbidden_word_and_no_long_line() {
    let root = workspace();
    let mut found = Vec::new();
    for folder in ["src", "runtime", "net", "examples", "tests", "benches"] {
        for file in sources(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("read a source file");
            for (number, line) in (1..).zip(text.lines()) {
                let forbidden = FORBIDDEN.iter().any(|word| line.contains(word));
                if forbidden || line.chars().count() > WIDTH_MAX {
                    found.push(format!("{}:{number}: {line}", file.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "forbidden words or long lines:\n{}", found.join("\n"));
}

// A renamed test must not leave its line in a table behind.
#[test]
fn the_tables_of_tests_name_tests_that_exist() {
    for page in ["tests/README.md", "docs/reliability.md"] {
        let table = fs::read_to_string(workspace().join(page)).expect("read the table");
        let mut found = 0;
        // Every second part stands between backticks.
        for name in table.split('`').skip(1).step_by(2) {
            let Some(path) = file_of_test(name) else { continue };
            let function = format!("fn {}(", name.rsplit(':').next().unwrap_or_default().trim());
            let text = fs::read_to_string(workspace().join(&path)).unwrap_or_default();
            assert!(text.contains(&function), "{page}: {path} has no `{function}`");
            found += 1;
        }
        assert!(found > 50, "{page}: only {found} tests are named");
    }
}

/// Where a test is that a table names, if what stands there is a test.
fn file_of_test(name: &str) -> Option<String> {
    if let Some((file, _)) = name.split_once("::") {
        return Some(match file.strip_prefix("ecosystem/") {
            Some(file) => format!("examples/ecosystem/tests/{file}.rs"),
            None => format!("tests/{file}.rs"),
        });
    }
    let (file, _) = name.split_once(": ")?;
    Some(format!("{}.rs", file.replace("runtime/", "runtime/src/")))
}

// A mode of failure that has no test is one that will come back.
#[test]
fn every_mode_of_failure_has_its_test() {
    let page = fs::read_to_string(workspace().join("docs/reliability.md")).expect("read the page");
    let counts = [14, 10, 21, 12, 13, 14, 8, 15, 6, 5, 4];
    for (letter, count) in ('A'..).zip(counts) {
        for number in 1..=count {
            let start = format!("| {letter}{number} ");
            let row = page.lines().find(|line| line.starts_with(&start));
            let row = row.unwrap_or_else(|| panic!("{letter}{number} has no row"));
            let kept_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            assert!(kept_by.contains('`'), "{letter}{number} has no test: {row}");
        }
    }
}

// A page that was renamed must not leave dead ends in the others.
#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut dead = Vec::new();
    let mut found = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("read a page");
        let folder = page.parent().expect("a page lies in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let abroad = link.contains("://") || link.is_empty();
            found += usize::from(!abroad);
            if !abroad && !folder.join(link).exists() {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links to nothing:\n{}", dead.join("\n"));
    assert!(found > 30, "only {found} links were found");
}

// A chain of linked entries may never finish under deferred task work.
#[test]
fn no_entry_is_linked_to_another() {
    for folder in ["runtime/src", "net/src"] {
        for file in sources(&workspace().join(folder)) {
            let text = fs::read_to_string(&file).expect("read a source file");
            for (number, line) in production_lines(&text) {
                let linked = ["IO_LINK", "IO_HARDLINK", "LinkTimeout"];
                let found = linked.iter().any(|word| line.contains(word));
                assert!(!found, "{}:{number}: {line}", file.display());
            }
        }
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents of the workspace: those at its root, and the guide.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/guide", "tests"] {
        for entry in fs::read_dir(workspace().join(folder)).expect("a folder of documents") {
            let path = entry.expect("an entry of a folder").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// Every Rust file under a folder, build outputs left out.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry of a folder").path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `driver/uring.rs` and `driver/mod.rs` and `driver.rs` belong to `driver`.
fn top_module(path: &Path) -> String {
    let first = path.components().next().expect("a path that is not empty");
    let name = first.as_os_str().to_str().expect("a name in UTF-8");
    name.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Lines of code with their numbers: no comments, and nothing from the tests on.
fn production_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .take_while(|(_, line)| !line.starts_with("mod tests {"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The top modules that a line reaches by `crate::`, in braces or not.
fn crate_modules(line: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, path) in line.match_indices("crate::") {
        if line[..at].ends_with(is_identifier) || line[..at].ends_with('$') {
            continue;
        }
        let rest = &line[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(list) => modules.extend(braced_modules(list)),
            None => modules.push(identifier(rest)),
        }
    }
    modules
}

/// The first names of a list such as `shard::{self, current}, timers}`.
fn braced_modules(list: &str) -> Vec<String> {
    let mut depth = 0;
    let mut modules = Vec::new();
    for part in list.split_inclusive(['{', '}', ',']) {
        if depth == 0 {
            let module = identifier(part.trim_start());
            modules.extend((!module.is_empty()).then_some(module));
        }
        depth += match part.chars().last() {
            Some('{') => 1,
            Some('}') => -1,
            _ => 0,
        };
        if depth < 0 {
            break;
        }
    }
    modules
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|&c| is_identifier(c)).collect()
}

fn is_identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
