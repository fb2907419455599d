//! In the place of the servers on libuv, where its headers were missing when this was built.

use bench_support::children::Failure;

use crate::work::Work;

pub(crate) fn does(work: Work) -> bool {
    work != Work::Http
}

pub(crate) fn serve(_work: Work) -> Result<(), Failure> {
    Err("built without libuv, whose headers (Debian: libuv1-dev) were not found".into())
}
