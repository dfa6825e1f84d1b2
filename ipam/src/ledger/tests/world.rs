//! A machine that tests set up: which boot it is in, and who is alive.

use crate::ledger::machine::Survey;
use std::cell::RefCell;

#[derive(Default)]
struct World {
    boot: Option<String>,
    survey: Option<Survey>,
}

thread_local!(static WORLD: RefCell<World> = RefCell::default());

/// None: that of the real machine.
pub(in crate::ledger) fn boot_id() -> Option<String> {
    WORLD.with_borrow(|world| world.boot.clone())
}

/// None: the real machine's.
pub(in crate::ledger) fn survey() -> Option<Survey> {
    WORLD.with_borrow(|world| world.survey.clone())
}

/// From here on this thread's machine is in the boot `id`.
pub(super) fn boot(id: &str) {
    WORLD.with_borrow_mut(|world| world.boot = Some(id.to_owned()));
}

/// From here on whoever looks finds what `change` makes of what was alive before (at first: nobody).
pub(super) fn live<T>(change: impl FnOnce(&mut Survey) -> T) {
    WORLD.with_borrow_mut(|world| change(world.survey.get_or_insert_default()));
}
