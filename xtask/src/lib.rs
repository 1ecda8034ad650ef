//! Repo law and release chores.
