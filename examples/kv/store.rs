//! What a shard holds of keys and values, and which shard a key is at home on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use crate::protocol::{Answer, number};

/// For keys and values of a shard. What would be more is refused.
const STORE_BYTES_MAX: usize = 256 << 20;

/// What can be asked of a key.
pub(crate) enum Ask {
    Get,
    Set(Arc<[u8]>),
    Delete,
    Exists,
    Increment,
}

/// Which of so many shards holds this key.
pub(crate) fn home(key: &[u8], shards: usize) -> usize {
    HOMES.hash_one(key) as usize % shards
}

/// Answers for a key that is at home on this shard.
pub(crate) fn answer(key: &[u8], ask: Ask) -> Answer {
    STORE.with_borrow_mut(|store| store.answer(key, ask))
}

thread_local! {
    /// The keys that are at home on this shard.
    static STORE: RefCell<Store> = RefCell::default();
}

/// One for all shards, and another in each process, so that nobody outside knows which keys meet.
static HOMES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

#[derive(Default)]
struct Store {
    values: HashMap<Box<[u8]>, Arc<[u8]>>,
    bytes: usize,
}

impl Store {
    fn answer(&mut self, key: &[u8], ask: Ask) -> Answer {
        match ask {
            Ask::Get => Answer::Value(self.values.get(key).cloned()),
            Ask::Set(value) => self.set(key, value, Answer::Line("+OK\r\n")),
            Ask::Exists => Answer::Integer(self.values.contains_key(key).into()),
            Ask::Delete => match self.values.remove(key) {
                Some(value) => {
                    self.bytes -= key.len() + value.len();
                    Answer::Integer(1)
                }
                None => Answer::Integer(0),
            },
            Ask::Increment => {
                let number = self.values.get(key).map_or(Some(0), |value| number(value));
                match number.and_then(|number| number.checked_add(1)) {
                    Some(next) => {
                        let value = Arc::from(next.to_string().as_bytes());
                        self.set(key, value, Answer::Integer(next))
                    }
                    None => Answer::Error("ERR value is not an integer or out of range".to_owned()),
                }
            }
        }
    }

    fn set(&mut self, key: &[u8], value: Arc<[u8]>, done: Answer) -> Answer {
        let before = self.values.get(key).map_or(0, |value| key.len() + value.len());
        let bytes = self.bytes - before + key.len() + value.len();
        if bytes > STORE_BYTES_MAX {
            return Answer::Error("OOM what a shard may hold is used up".to_owned());
        }
        self.bytes = bytes;
        match self.values.get_mut(key) {
            Some(old) => *old = value,
            None => drop(self.values.insert(Box::from(key), value)),
        }
        done
    }
}
