//! Tasks as spans, in the form that tokio-console reads. A subscriber of this file's own keeps what
//! it is told; it is the default of the test's thread, and a span keeps it wherever it goes.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug};
use std::future::{pending, poll_fn};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

use annulus::task::{Builder, spawn_blocking, yield_now};
use annulus::{Driver, Runtime, Shard, spawn};
use common::{each_driver, runtime};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_default;
use tracing::{Event, Level, Metadata, Subscriber, info_span};

each_driver! {
    fn a_task_is_a_span_with_the_names_and_fields_of_tokio(driver: Driver) {
        let future = async { yield_now().await };
        let bytes = size_of_val(&future) as u64;
        let line = line!() + 2;
        let recorder = watch(driver, async move {
            let named = Builder::new().name("named").spawn(future);
            named.await.expect("the named task");
            spawn(async {}).await.expect("the nameless task");
        });
        let mut span = recorder.named("named");
        assert_eq!((span.target, span.name), ("tokio::task", "runtime.spawn"));
        assert_eq!(span.level, Level::TRACE);
        assert_eq!(span.parent, None);
        let id = span.fields.remove("task.id").expect("an id");
        let Some(Value::Number(1..)) = span.fields.remove("loc.col") else { panic!("{span:?}") };
        let expected = BTreeMap::from([
            ("kind", Value::Shown("task".into())),
            ("task.name", Value::Shown("named".into())),
            ("size.bytes", Value::Number(bytes)),
            ("loc.file", Value::Text(file!().into())),
            ("loc.line", Value::Number(line.into())),
        ]);
        assert_eq!(span.fields, expected);

        let nameless = recorder.of_kind("task").pop().expect("the nameless task");
        assert_eq!(nameless.fields.get("task.name"), None);
        let Value::Number(id) = id else { panic!("the id is {id:?}") };
        assert!(nameless.number("task.id") > id);
    }

    fn the_future_of_block_on_is_a_span_too(driver: Driver) {
        let recorder = watch(driver, yield_now());
        let [root] = &recorder.of_kind("block_on")[..] else { panic!("{recorder:?}") };
        assert_eq!((root.target, root.name), ("tokio::task", "runtime.spawn"));
        assert_eq!(root.moves, ["enter", "waker.wake_by_ref", "exit", "enter", "exit", "close"]);
    }

    fn a_poll_is_one_enter_and_one_exit(driver: Driver) {
        let recorder = watch(driver, async {
            let task = Builder::new().name("polled").spawn(async {
                yield_now().await;
                yield_now().await;
            });
            task.await.expect("the task");
        });
        let woken = ["enter", "waker.wake_by_ref", "exit"];
        // No more than that: the drop of the future is no poll.
        let expected = [&woken[..], &woken, &["enter", "exit", "close"]].concat();
        assert_eq!(recorder.named("polled").moves, expected);
    }

    fn a_span_closes_however_its_task_ends(driver: Driver) {
        let seen = Recorder::default();
        let within = seen.clone();
        let _guard = set_default(seen.clone());
        runtime(driver).block_on(async move {
            let spawn = |name, future| Builder::new().name(name).spawn(future);
            spawn("returns", Box::pin(async {})).await.expect("a task that returns");
            let panics: Boxed = Box::pin(async { panic!("the panic of a test") });
            assert!(Builder::new().name("panics").spawn(panics).await.is_err());
            let left = Builder::new().name("left").spawn(pending::<()>());
            let aborted = Builder::new().name("aborted").spawn(pending::<()>());
            let unpolled = Builder::new().name("aborted unpolled").spawn(pending::<()>());
            unpolled.abort();
            yield_now().await;
            aborted.abort();
            assert!(aborted.await.is_err() && unpolled.await.is_err());
            for name in ["returns", "panics", "aborted", "aborted unpolled"] {
                assert!(within.named(name).is_closed(), "{name}: {within:?}");
            }
            assert_eq!(within.named("left").moves, ["enter", "exit"]);
            drop(left);
            drop(Builder::new().name("left unpolled").spawn(pending::<()>()));
        });
        for name in ["returns", "panics", "aborted", "left"] {
            assert_eq!(seen.named(name).moves, ["enter", "exit", "close"], "{name}");
        }
        for name in ["aborted unpolled", "left unpolled"] {
            assert_eq!(seen.named(name).moves, ["close"], "{name}");
        }
    }

    fn the_place_is_the_line_of_the_user(driver: Driver) {
        let recorder = Recorder::default();
        let _guard = set_default(recorder.clone());
        let runtime = runtime(driver);
        let first = line!() + 1;
        runtime.block_on(async {
            let one = spawn(async {});
            let two = Builder::new().spawn(async {});
            let three = Shard::current().spawn_with(|| async {});
            let four = spawn_blocking(|| {});
            drop((one, two, three, four.await));
        });
        let spans = recorder.spans();
        let lines: Vec<u64> = spans.iter().map(|span| span.number("loc.line")).collect();
        assert_eq!(lines, (0..5).map(|n| u64::from(first) + n).collect::<Vec<_>>());
        for span in spans {
            assert_eq!(span.fields["loc.file"], Value::Text(file!().into()));
        }
    }

    fn spans_of_the_user_are_in_that_of_their_own_task_only(driver: Driver) {
        let recorder = watch(driver, async {
            drop(info_span!("of the root"));
            let task = info_span!("around").in_scope(|| {
                Builder::new().name("outer").spawn(async {
                    let inner = Builder::new().name("inner").spawn(async {
                        drop(info_span!("of the inner"));
                        yield_now().await;
                        drop(info_span!("of the inner, later"));
                    });
                    drop(info_span!("of the outer"));
                    yield_now().await;
                    drop(info_span!("of the outer, later"));
                    inner.await.expect("the inner task");
                })
            });
            task.await.expect("the outer task");
            drop(info_span!("of the root, later"));
        });
        let id = |name| Some(recorder.named(name).id);
        let root = Some(recorder.of_kind("block_on")[0].id);
        for (name, parent) in [
            ("of the root", root),
            ("around", root),
            ("of the outer", id("outer")),
            ("of the inner", id("inner")),
            ("of the outer, later", id("outer")),
            ("of the inner, later", id("inner")),
            ("of the root, later", root),
        ] {
            let spans = recorder.spans();
            let span = spans.iter().find(|span| span.name == name).expect(name);
            assert_eq!(span.parent, parent, "{name}");
        }
        assert_eq!(recorder.named("outer").parent, None);
        assert_eq!(recorder.named("inner").parent, None);
    }

    fn what_was_spawned_without_a_subscriber_is_never_told(driver: Driver) {
        let recorder = Recorder::default();
        runtime(driver).block_on(async {
            let task = spawn(async {
                for _ in 0..3 {
                    yield_now().await;
                }
            });
            let job = spawn_blocking(|| {});
            let _guard = set_default(recorder.clone());
            task.await.expect("the task");
            job.await.expect("the job");
        });
        assert!(recorder.spans().is_empty(), "{recorder:?}");
        assert_eq!(recorder.lock().strays, 0);
    }

    fn what_is_done_with_a_waker_is_told_and_all_its_clones_are_equal(driver: Driver) {
        let recorder = watch(driver, async {
            let mut kept = None::<Waker>;
            let task = Builder::new().name("woken").spawn(poll_fn(move |cx| match kept.take() {
                Some(waker) => {
                    assert!(waker.will_wake(cx.waker()));
                    Poll::Ready(())
                }
                None => {
                    let waker = cx.waker().clone();
                    assert!(waker.will_wake(cx.waker()));
                    let another = waker.clone();
                    another.wake();
                    kept = Some(waker);
                    Poll::Pending
                }
            }));
            task.await.expect("the woken task");
        });
        let moves = recorder.named("woken").moves;
        let first = ["enter", "waker.clone", "waker.clone", "waker.wake", "exit"];
        assert_eq!(moves, [&first[..], &["enter", "waker.drop", "exit", "close"]].concat());
    }

    fn a_waker_that_outlives_its_task_keeps_no_span_open_and_wakes_from_anywhere(driver: Driver) {
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        // The peer wakes by one waker and hands back another, when the task is long over.
        let peer = thread::spawn(move || {
            let waker = receiver.recv().expect("a waker");
            let kept = waker.clone();
            waker.wake();
            kept
        });
        let recorder = watch(driver, async move {
            let mut polled = false;
            let task = Builder::new().name("woken").spawn(poll_fn(move |cx| {
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(());
                }
                sender.send(cx.waker().clone()).expect("the peer is there");
                Poll::Pending
            }));
            task.await.expect("the woken task");
        });
        let kept = peer.join().expect("the peer");
        assert!(recorder.named("woken").is_closed());
        kept.wake_by_ref();
        drop(kept);
        // The two threads' moves come in any order, but in no other number.
        let mut moves = recorder.named("woken").moves;
        moves.sort();
        let mut expected = ["enter", "exit", "enter", "exit", "close"].to_vec();
        expected.extend(["waker.clone"; 2]);
        expected.extend(["waker.drop", "waker.wake", "waker.wake_by_ref"]);
        expected.sort_unstable();
        assert_eq!(moves, expected);
    }

    fn a_task_of_another_shard_is_polled_in_its_span_there(driver: Driver) {
        let recorder = Recorder::default();
        let _guard = set_default(recorder.clone());
        let runtime = Runtime::builder().driver(driver).shards(2).build().expect("a runtime");
        runtime.block_on(async {
            let other = Shard::all().pop().expect("two shards");
            let there = other.spawn_with(|| async {
                yield_now().await;
                thread::current().id()
            });
            let there = there.await.expect("the task on the other shard");
            let [task] = &recorder.of_kind("task")[..] else { panic!("{recorder:?}") };
            let woken = ["enter", "waker.wake_by_ref", "exit"];
            assert_eq!(task.moves, [&woken[..], &["enter", "exit", "close"]].concat());
            assert_eq!(task.entered_on, [there, there]);
        });
    }

    fn a_blocking_job_is_one_span_that_is_entered_where_it_runs(driver: Driver) {
        let recorder = watch(driver, async {
            let there = spawn_blocking(|| thread::current().id()).await.expect("the job");
            assert_ne!(there, thread::current().id());
            let panics = spawn_blocking(|| panic!("the panic of a test")).await;
            assert!(panics.is_err());
        });
        assert!(recorder.of_kind("task").is_empty(), "{recorder:?}");
        let jobs = recorder.of_kind("blocking");
        assert_eq!(jobs.len(), 2, "{recorder:?}");
        for job in jobs {
            assert_eq!((job.target, job.name), ("tokio::task::blocking", "runtime.spawn"));
            assert_eq!(job.parent, None);
            assert_eq!(job.moves, ["enter", "exit", "close"]);
            assert_ne!(job.entered_on, [thread::current().id()]);
            assert!(matches!(&job.fields["fn"], Value::Shown(name) if name.contains("closure")));
        }
    }
}

type Boxed = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// What is told of a program that runs on this driver, the end of its runtime included.
fn watch<F: Future>(driver: Driver, program: F) -> Recorder {
    let recorder = Recorder::default();
    let _guard = set_default(recorder.clone());
    runtime(driver).block_on(program);
    recorder
}

/// A subscriber that keeps everything.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The number of a span is its index and 1, as none may be 0.
    spans: Vec<Span>,
    /// The spans that each thread is in.
    stacks: HashMap<ThreadId, Vec<u64>>,
    /// Events that belong to no task.
    strays: u32,
}

#[derive(Clone, Debug)]
struct Span {
    id: u64,
    name: &'static str,
    target: &'static str,
    level: Level,
    parent: Option<u64>,
    fields: BTreeMap<&'static str, Value>,
    /// What was done with the span, and with the wakers of its task.
    moves: Vec<String>,
    entered_on: Vec<ThreadId>,
    handles: u32,
}

/// A value of a field, by how it was recorded.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(u64),
    Text(String),
    Shown(String),
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics within")
    }

    fn spans(&self) -> Vec<Span> {
        self.lock().spans.clone()
    }

    /// The span of the task with this name.
    fn named(&self, name: &str) -> Span {
        let name = Value::Shown(name.to_owned());
        let mut spans = self.spans().into_iter();
        let found = spans.find(|span| span.fields.get("task.name") == Some(&name));
        found.unwrap_or_else(|| panic!("no task has the name {name:?}: {self:?}"))
    }

    /// The spans of all tasks of this kind.
    fn of_kind(&self, kind: &str) -> Vec<Span> {
        let kind = Value::Shown(kind.to_owned());
        let mut spans = self.spans();
        spans.retain(|span| span.fields.get("kind") == Some(&kind));
        spans
    }

    fn note(&self, id: u64, what: &str) {
        self.lock().spans[index(id)].moves.push(what.to_owned());
    }
}

impl Span {
    fn number(&self, field: &str) -> u64 {
        match self.fields.get(field) {
            Some(Value::Number(number)) => *number,
            other => panic!("{field} is {other:?}"),
        }
    }

    fn is_closed(&self) -> bool {
        self.moves.last().is_some_and(|last| last == "close")
    }
}

impl Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.spans()).finish()
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let mut state = self.lock();
        let id = state.spans.len() as u64 + 1;
        let around = state.stacks.get(&thread::current().id()).and_then(|stack| stack.last());
        let parent = match attributes.parent() {
            Some(parent) => Some(parent.into_u64()),
            None if attributes.is_contextual() => around.copied(),
            None => None,
        };
        let metadata = attributes.metadata();
        state.spans.push(Span {
            id,
            name: metadata.name(),
            target: metadata.target(),
            level: *metadata.level(),
            parent,
            fields: fields.0,
            moves: Vec::new(),
            entered_on: Vec::new(),
            handles: 1,
        });
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.lock().spans[index(span.into_u64())].fields.extend(fields.0);
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        match (event.metadata().target(), fields.0.get("op"), fields.0.get("task.id")) {
            ("tokio::task::waker", Some(Value::Text(op)), Some(&Value::Number(task))) => {
                self.note(task, op);
            }
            _ => self.lock().strays += 1,
        }
    }

    fn enter(&self, span: &Id) {
        self.note(span.into_u64(), "enter");
        let mut state = self.lock();
        let thread = thread::current().id();
        state.spans[index(span.into_u64())].entered_on.push(thread);
        state.stacks.entry(thread).or_default().push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        self.note(span.into_u64(), "exit");
        let mut state = self.lock();
        let left = state.stacks.get_mut(&thread::current().id()).and_then(Vec::pop);
        assert_eq!(left, Some(span.into_u64()), "spans are left in the order of a stack");
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.lock().spans[index(id.into_u64())].handles += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let closed = {
            let span = &mut self.lock().spans[index(id.into_u64())];
            span.handles -= 1;
            span.handles == 0
        };
        if closed {
            self.note(id.into_u64(), "close");
        }
        closed
    }
}

fn index(id: u64) -> usize {
    usize::try_from(id - 1).expect("few spans")
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, Value>);

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), Value::Number(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), Value::Shown(format!("{value:?}")));
    }
}
