//! The attribute macros of `annulus`: `#[annulus::main]` and `#[annulus::test]`.
//!
//! Written over plain token trees, so that a program that waits for sockets does not compile a
//! parser of the whole language first. The body moves, token by token, into an `async fn` inside
//! the function: its types, its errors and their places in the source stay those of the author.

use std::iter::{self, Peekable};

use proc_macro::{
    Delimiter, Group, Ident, Literal, Punct, Spacing, Span, TokenStream, TokenTree as Tree,
};

/// Turns an `async fn` without arguments into the entry of the program: builds a runtime and runs
/// the body on it.
///
/// ```ignore
/// #[annulus::main]
/// async fn main() -> std::io::Result<()> {
///     let listener = annulus::net::TcpListener::bind("127.0.0.1:7000").await?;
///     println!("listening on {}", listener.local_addr()?);
///     Ok(())
/// }
///
/// #[annulus::main(driver = "epoll")]
/// async fn main() {}
/// ```
///
/// Attributes, visibility, generics and the return type stay as they are written.
///
/// # Arguments
///
/// | argument | meaning | without it |
/// | --- | --- | --- |
/// | `driver = "auto"`, `"uring"` or `"epoll"` | which driver the shard uses | `"auto"` |
/// | `crate = path` | where the `annulus` crate is found | `::annulus` |
///
/// The environment of the process overrides the driver (`ANNULUS_DRIVER`).
///
/// # Errors
///
/// When the runtime cannot be built, the process prints `error:` and the reason to its standard
/// error and exits with status 1. Programs that want to do otherwise use `Runtime::builder()`.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(Macro::Main, arguments, item)
}

/// Turns an `async fn` without arguments into a test that runs on a runtime of its own.
///
/// ```ignore
/// #[annulus::test(start_paused = true)]
/// async fn a_day_passes_at_once() {
///     annulus::time::sleep(std::time::Duration::from_secs(86_400)).await;
/// }
/// ```
///
/// Attributes such as `#[ignore]` and `#[should_panic]` stay as they are written.
///
/// # Arguments
///
/// Those of [`macro@main`], and `start_paused = true`: the clock stands still while anything can
/// run, and jumps to the next deadline when nothing can.
///
/// # Panics
///
/// When the runtime cannot be built, the test panics with the reason.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand(Macro::Test, arguments, item)
}

/// The function that holds the author's body. An item in the function shadows what the body sees
/// from outside, hence a name that nobody else uses.
const BODY_NAME: &str = "__annulus_body";

fn expand(which: Macro, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = match Function::parse(which, item.clone()) {
        Ok(function) => function,
        Err(error) => return TokenStream::from_iter([error.into_tokens(), item]),
    };
    let expanded = function.check(which).and_then(|()| {
        let arguments = Arguments::parse(which, arguments)?;
        Ok(function.with_body(which, function.runner(which, &arguments)))
    });
    expanded.unwrap_or_else(|error| {
        // The function stays, without its body: one mistake, one message.
        let stub = function.with_body(Macro::Main, source("::core::unreachable!()"));
        TokenStream::from_iter([error.into_tokens(), stub])
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Macro {
    Main,
    Test,
}

impl Macro {
    fn attribute(self) -> &'static str {
        match self {
            Self::Main => "#[annulus::main]",
            Self::Test => "#[annulus::test]",
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Main => "`driver` and `crate`",
            Self::Test => "`driver`, `start_paused` and `crate`",
        }
    }
}

/// The pieces of a function, each as the author wrote it.
struct Function {
    head: Head,
    name: Ident,
    generics: Vec<Tree>,
    parameters: Group,
    /// From the parameters to the body: return type and `where` clause.
    tail: Vec<Tree>,
    body: Group,
}

/// What stands before the name of a function.
struct Head {
    attributes: Vec<Tree>,
    visibility: Vec<Tree>,
    asyncness: Option<Tree>,
    /// Neither visibility nor `async`: `unsafe`, `extern "C"`.
    qualifier: Option<Tree>,
    /// The `fn`.
    keyword: Tree,
}

impl Head {
    /// Takes the head from the trees, or answers the place where it is no function's head.
    fn parse(trees: &mut Peekable<impl Iterator<Item = Tree>>) -> Result<Self, Span> {
        let (mut attributes, mut visibility) = (Vec::new(), Vec::new());
        let (mut asyncness, mut qualifier) = (None, None);
        loop {
            let tree = trees.next().ok_or_else(Span::call_site)?;
            let word = match &tree {
                Tree::Ident(word) => word.to_string(),
                _ if is_punct(&tree, '#') => "#".to_owned(),
                _ => return Err(tree.span()),
            };
            match word.as_str() {
                "fn" => {
                    let keyword = tree;
                    return Ok(Self { attributes, visibility, asyncness, qualifier, keyword });
                }
                "async" => asyncness = Some(tree),
                "#" => {
                    attributes.push(tree);
                    attributes.extend(trees.next());
                }
                "pub" => {
                    let scope = trees.next_if(|next| is_group(next, Delimiter::Parenthesis));
                    visibility.push(tree);
                    visibility.extend(scope);
                }
                "const" | "unsafe" | "extern" => {
                    qualifier = Some(tree);
                    let _abi = trees.next_if(|next| matches!(next, Tree::Literal(_)));
                }
                _ => return Err(tree.span()),
            }
        }
    }
}

impl Function {
    fn parse(which: Macro, item: TokenStream) -> Result<Self, Error> {
        Self::parse_item(item).map_err(|span| {
            Error::new(span, format!("`{}` goes on an `async fn` with a body", which.attribute()))
        })
    }

    fn parse_item(item: TokenStream) -> Result<Self, Span> {
        let mut trees = Vec::new();
        open_head(item, &mut true, &mut trees);
        let mut trees = trees.into_iter().peekable();

        let head = Head::parse(&mut trees)?;
        let Some(Tree::Ident(name)) = trees.next() else { return Err(head.keyword.span()) };
        let mut generics = Vec::new();
        let parameters = loop {
            match trees.next() {
                // In angle brackets, parentheses belong to a bound such as `Fn(u8)`.
                Some(Tree::Group(group)) if angle_depth(&generics) == 0 => break group,
                Some(tree) => generics.push(tree),
                None => return Err(name.span()),
            }
        };
        let mut tail: Vec<Tree> = trees.collect();
        let body = tail.pop().and_then(into_block).ok_or_else(|| name.span())?;
        Ok(Self { head, name, generics, parameters, tail, body })
    }

    fn check(&self, which: Macro) -> Result<(), Error> {
        let attribute = which.attribute();
        if let Some(qualifier) = &self.head.qualifier {
            let message = format!("the function under `{attribute}` cannot be `{qualifier}`");
            return Err(Error::new(qualifier.span(), message));
        }
        if self.head.asyncness.is_none() {
            let message = format!(
                "the function under `{attribute}` must be async: write `async fn {}`",
                self.name
            );
            return Err(Error::between(self.head.keyword.span(), self.name.span(), message));
        }
        if !self.parameters.stream().is_empty() {
            let message = format!("the function under `{attribute}` takes no arguments");
            return Err(Error::new(self.parameters.span(), message));
        }
        let second = self.head.attributes.iter().find(|tree| is_test_attribute(tree));
        if let (Macro::Test, Some(second)) = (which, second) {
            let message = format!("`{attribute}` makes this a test already: remove `#[test]`");
            return Err(Error::new(second.span(), message));
        }
        Ok(())
    }

    /// The author's function with another body, and no longer async.
    fn with_body(&self, which: Macro, body: TokenStream) -> TokenStream {
        let mut tokens = match which {
            Macro::Main => TokenStream::new(),
            Macro::Test => source("#[::core::prelude::v1::test]"),
        };
        tokens.extend(self.head.attributes.iter().cloned());
        tokens.extend(self.head.visibility.iter().cloned());
        tokens.extend(self.signature(&self.name));
        tokens.extend(group(Delimiter::Brace, body));
        tokens
    }

    /// From `fn` to the body, without arguments: `check` has refused any, or is about to.
    fn signature(&self, name: &Ident) -> impl Iterator<Item = Tree> {
        let mut no_arguments = Group::new(Delimiter::Parenthesis, TokenStream::new());
        no_arguments.set_span(self.parameters.span());
        [self.head.keyword.clone(), name.clone().into()]
            .into_iter()
            .chain(self.generics.iter().cloned())
            .chain([no_arguments.into()])
            .chain(self.tail.iter().cloned())
    }

    /// The new body: the author's body as an `async fn`, a runtime, and the call.
    ///
    /// A function, where a block would do, because only a function's body is checked against a
    /// return type that stands in the source: a mismatch is then reported as in any `async fn`.
    fn runner(&self, which: Macro, arguments: &Arguments) -> TokenStream {
        let body_name = Ident::new(BODY_NAME, self.name.span());
        let mut tokens = TokenStream::from_iter(self.head.asyncness.clone());
        tokens.extend(self.signature(&body_name));
        tokens.extend([Tree::from(self.body.clone())]);

        tokens.extend(source("match"));
        tokens.extend(arguments.krate.clone());
        tokens.extend(source("::Runtime::builder()"));
        tokens.extend(arguments.builder_calls());
        tokens.extend(source(".build()"));

        let mut arms = source("::core::result::Result::Ok(runtime) => runtime.block_on");
        let mut call = TokenStream::from_iter([Tree::from(body_name)]);
        call.extend(self.turbofish());
        call.extend(source("()"));
        arms.extend(group(Delimiter::Parenthesis, call));
        arms.extend(source(match which {
            Macro::Main => {
                ", ::core::result::Result::Err(error) => {
                    ::std::eprintln!(\"error: {}\", error);
                    ::std::process::exit(1)
                }"
            }
            Macro::Test => ", ::core::result::Result::Err(error) => ::core::panic!(\"{}\", error)",
        }));
        tokens.extend(group(Delimiter::Brace, arms));
        tokens
    }

    /// `::<T, N>` for the generics `<'a, T: Bound, const N: usize>`: lifetimes are inferred.
    fn turbofish(&self) -> TokenStream {
        let names = parameter_names(&self.generics);
        if names.is_empty() {
            return TokenStream::new();
        }
        let separated = names
            .into_iter()
            .flat_map(|name| [Tree::from(name), Punct::new(',', Spacing::Alone).into()]);
        TokenStream::from_iter(source("::<").into_iter().chain(separated).chain(source(">")))
    }
}

/// What stands in the parentheses of the attribute.
struct Arguments {
    krate: TokenStream,
    driver: Option<&'static str>,
    start_paused: bool,
}

impl Arguments {
    fn parse(which: Macro, stream: TokenStream) -> Result<Self, Error> {
        let mut arguments = Self { krate: source("::annulus"), driver: None, start_paused: false };
        let mut seen: Vec<String> = Vec::new();
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            let Tree::Ident(name) = &tree else {
                let message = format!(
                    "expected `name = value`: `{}` knows {}",
                    which.attribute(),
                    which.arguments()
                );
                return Err(Error::new(tree.span(), message));
            };
            let key = name.to_string();
            if seen.contains(&key) {
                return Err(Error::new(name.span(), format!("`{key}` is given twice")));
            }
            let equals = trees.next_if(|next| is_punct(next, '='));
            let value: Vec<Tree> =
                iter::from_fn(|| trees.next_if(|next| !is_punct(next, ','))).collect();
            let _comma = trees.next();
            arguments.set(which, name, equals.is_some(), &value)?;
            seen.push(key);
        }
        Ok(arguments)
    }

    fn set(
        &mut self,
        which: Macro,
        name: &Ident,
        has_equals: bool,
        value: &[Tree],
    ) -> Result<(), Error> {
        let wrong = |message: &str| match (has_equals, value.first(), value.last()) {
            (true, Some(first), Some(last)) => {
                Error::between(first.span(), last.span(), message.to_owned())
            }
            _ => Error::new(name.span(), message.to_owned()),
        };
        let text = match value {
            [Tree::Literal(literal)] if has_equals => literal.to_string(),
            [Tree::Ident(word)] if has_equals => word.to_string(),
            _ => String::new(),
        };
        match (name.to_string().as_str(), which) {
            ("driver", _) => match string(&text).and_then(driver_variant) {
                Some(variant) => self.driver = Some(variant),
                None => return Err(wrong("expected `driver = \"auto\"`, \"uring\" or \"epoll\"")),
            },
            ("start_paused", Macro::Test) => match text.as_str() {
                "true" => self.start_paused = true,
                "false" => self.start_paused = false,
                _ => return Err(wrong("expected `start_paused = true` or false")),
            },
            ("start_paused", Macro::Main) => {
                return Err(wrong("only `#[annulus::test]` can start with a paused clock"));
            }
            ("crate", _) => match crate_path(value, &text) {
                Some(path) if has_equals => self.krate = path,
                _ => return Err(wrong("expected `crate = path`, the path of the annulus crate")),
            },
            (unknown, _) => {
                let message = format!(
                    "unknown argument `{unknown}`: `{}` knows {}",
                    which.attribute(),
                    which.arguments()
                );
                return Err(Error::new(name.span(), message));
            }
        }
        Ok(())
    }

    fn builder_calls(&self) -> TokenStream {
        let mut calls = TokenStream::new();
        if let Some(driver) = self.driver {
            calls.extend(source(".driver"));
            let mut path = self.krate.clone();
            path.extend(source(&format!("::Driver::{driver}")));
            calls.extend(group(Delimiter::Parenthesis, path));
        }
        if self.start_paused {
            calls.extend(source(".start_paused(true)"));
        }
        calls
    }
}

/// A message for the author and the piece of source it is about.
struct Error {
    first: Span,
    last: Span,
    message: String,
}

impl Error {
    fn new(span: Span, message: String) -> Self {
        Self { first: span, last: span, message }
    }

    fn between(first: Span, last: Span, message: String) -> Self {
        Self { first, last, message }
    }

    /// `compile_error!` underlines from its first token to its last.
    fn into_tokens(self) -> TokenStream {
        let mut text = Literal::string(&self.message);
        text.set_span(self.last);
        let mut text = Group::new(Delimiter::Brace, Tree::from(text).into());
        text.set_span(self.last);
        let path = source("::core::compile_error!").into_iter().map(|mut tree| {
            tree.set_span(self.first);
            tree
        });
        path.chain([Tree::from(text)]).collect()
    }
}

/// Opens the invisible groups that `macro_rules` puts around fragments such as `$vis` or `$item`,
/// up to the `fn`. Behind it they stay closed: they keep a `$ty` together.
fn open_head(stream: TokenStream, is_head: &mut bool, trees: &mut Vec<Tree>) {
    for tree in stream {
        match tree {
            Tree::Group(group) if *is_head && group.delimiter() == Delimiter::None => {
                open_head(group.stream(), is_head, trees);
            }
            tree => {
                *is_head &= !matches!(&tree, Tree::Ident(word) if word.to_string() == "fn");
                trees.push(tree);
            }
        }
    }
}

/// The braces of a body, also when they came from a `$block` of `macro_rules`.
fn into_block(tree: Tree) -> Option<Group> {
    match tree {
        Tree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        Tree::Group(group) if group.delimiter() == Delimiter::None => {
            let mut inside = group.stream().into_iter();
            let block = inside.next().and_then(into_block);
            block.filter(|_| inside.next().is_none())
        }
        _ => None,
    }
}

/// How many `<` are open after these trees. The `>` of an arrow closes none.
fn angle_depth(trees: &[Tree]) -> usize {
    let mut depth = 0_usize;
    let mut after_dash = false;
    for tree in trees {
        depth = match tree {
            _ if is_punct(tree, '<') => depth + 1,
            _ if is_punct(tree, '>') && !after_dash => depth.saturating_sub(1),
            _ => depth,
        };
        after_dash = is_punct(tree, '-');
    }
    depth
}

/// The names of the type and const parameters in `<'a, T: Bound, const N: usize>`.
fn parameter_names(generics: &[Tree]) -> Vec<Ident> {
    let mut names = Vec::new();
    let mut at_start = true;
    for (index, tree) in generics.iter().enumerate() {
        match tree {
            Tree::Ident(word) if at_start && word.to_string() != "const" => {
                names.push(word.clone());
                at_start = false;
            }
            _ if is_punct(tree, '\'') => at_start = false,
            _ if is_punct(tree, ',') => at_start = angle_depth(&generics[..index]) == 1,
            _ => {}
        }
    }
    names
}

fn is_punct(tree: &Tree, character: char) -> bool {
    matches!(tree, Tree::Punct(punct) if punct.as_char() == character)
}

fn is_group(tree: &Tree, delimiter: Delimiter) -> bool {
    matches!(tree, Tree::Group(group) if group.delimiter() == delimiter)
}

fn is_test_attribute(tree: &Tree) -> bool {
    matches!(tree, Tree::Group(group) if group.stream().to_string() == "test")
}

/// A path as bare tokens, or in a string as older macros want it.
fn crate_path(value: &[Tree], text: &str) -> Option<TokenStream> {
    if let Some(path) = string(text) {
        return path.parse().ok().filter(|path: &TokenStream| !path.is_empty());
    }
    let is_path = value.iter().all(|tree| matches!(tree, Tree::Ident(_)) || is_punct(tree, ':'));
    (is_path && !value.is_empty()).then(|| value.iter().cloned().collect())
}

fn group(delimiter: Delimiter, stream: TokenStream) -> TokenStream {
    Tree::from(Group::new(delimiter, stream)).into()
}

/// Tokens of this crate's own, placed at the attribute.
fn source(text: &str) -> TokenStream {
    match text.parse() {
        Ok(tokens) => tokens,
        Err(error) => unreachable!("the macro's own source `{text}` does not parse: {error}"),
    }
}

/// The text between plain quotes. None of the values that are known here needs an escape.
fn string(literal: &str) -> Option<&str> {
    literal.strip_prefix('"')?.strip_suffix('"')
}

fn driver_variant(name: &str) -> Option<&'static str> {
    match name {
        "auto" => Some("Auto"),
        "uring" => Some("Uring"),
        "epoll" => Some("Epoll"),
        _ => None,
    }
}

// Token streams exist only while the compiler expands a macro, so that what these macros accept
// and refuse is tested by compiling: in the facade's tests and examples.
#[cfg(test)]
mod tests {
    use super::{driver_variant, string};

    #[test]
    fn strings_lose_their_quotes_and_nothing_else_is_a_string() {
        assert_eq!(string("\"uring\""), Some("uring"));
        assert_eq!(string("\"\""), Some(""));
        for wrong in ["uring", "\"", "b\"uring\"", "r\"uring\"", ""] {
            assert_eq!(string(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn drivers_have_the_names_of_the_environment_variable() {
        assert_eq!(driver_variant("auto"), Some("Auto"));
        assert_eq!(driver_variant("uring"), Some("Uring"));
        assert_eq!(driver_variant("epoll"), Some("Epoll"));
        assert_eq!(driver_variant("Uring"), None);
    }
}
