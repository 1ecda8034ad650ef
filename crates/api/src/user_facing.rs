//! Errors that a person reads: a stable code, what happened, what to do.

/// An error that can reach a user. The `Display` text is the cause.
pub trait UserFacing: std::error::Error {
    /// Stable identifier, `<component>/<kebab-case>`, for scripts and documentation.
    fn code(&self) -> &'static str;
    /// What the reader can do about it, as one imperative sentence.
    fn fix(&self) -> String;
}
