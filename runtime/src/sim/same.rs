//! The simulated network beside the kernel's: the same calls are given the same answers.

mod binds;
mod ends;
mod real;

use std::sync::Arc;

use super::{Faults, Place, World};

/// What a call has answered: its errno, or none.
type Answer = Result<(), i32>;

/// Makes this thread the only shard of a world in which everything arrives at once.
fn in_world<R>(run: impl FnOnce(&Arc<World>) -> R) -> R {
    let world = World::new(1, Faults::none(), u64::MAX);
    let place: Place = world.expect(0);
    let _taken = place.take();
    run(&world)
}
