//! `dstack os` and `dstack image`: thin over the libraries.

mod build;
mod list;
mod pack;

pub(crate) use build::{build, cache, lock};
pub(crate) use list::list;
pub(crate) use pack::pack;

use std::path::{Path, PathBuf};

use crate::{failure::Outcome, home::Home, stack::LocalStack};

/// The image store: as named, that of the local stack, or that of a stack to come.
pub(crate) fn store(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(named) = named {
        return std::path::absolute(named).map_err(|error| crate::failure::Failure::io("reading", named, &error));
    }
    let home = Home::from_env()?;
    Ok(LocalStack::find(&home)?.map_or_else(|| home.images(), |stack| stack.images()))
}
