//! `dstack verify`: evidence in, verdict out.
//!
//! ```text
//! URL, name or file ─▶ evidence ─┐
//! verify.toml ─▶ anchors, reference values, expectations ─┼▶ judge ─▶ verdict ─▶ text, JSON, exit code
//! vendor's collateral service ─▶ collateral ─┘
//! ```
//! [`judge`] is pure; everything around it collects its inputs.

mod collateral;
mod judge;
mod nonce;
mod render;
mod settings;
mod source;
mod verdict;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use dstack_attestation::UnverifiedQuote;

use self::{
    judge::{Case, judge},
    nonce::Nonce,
    settings::Settings,
    source::Source,
    verdict::{Verdict, Word},
};
use crate::{
    args::VerifyArgs,
    failure::{EXIT_NEGATIVE, EXIT_UNDETERMINED, Failure, Outcome},
    home::Home,
    output::Output,
    progress::Progress,
};

/// Verifies and prints the verdict; returns the exit code.
///
/// Errors: wrong usage, or the question could not be decided.
pub(crate) async fn verify(args: &VerifyArgs, output: Output) -> Outcome<u8> {
    let undetermined = |failure: Failure| if failure.exit == EXIT_NEGATIVE { failure.with_exit(EXIT_UNDETERMINED) } else { failure };
    let verdict = decide(args, output).await.map_err(undetermined)?;
    output.result(&verdict, |palette| render::render(palette, &verdict))?;
    Ok(match verdict.word {
        Word::Verified | Word::VerifiedWithCaveats => 0,
        Word::Simulated if args.allow_simulated => 0,
        Word::Simulated | Word::NotVerified => EXIT_NEGATIVE,
    })
}

async fn decide(args: &VerifyArgs, output: Output) -> Outcome<Verdict> {
    let given = args.nonce.as_deref().map(str::parse::<Nonce>).transpose()?;
    let home = Home::from_env()?;
    let source = Source::find(&args.source, &home).await?;
    let settings = choose_settings(args, &source, &home)?;
    let progress = Progress::new(output);
    let (nonce, collected) = match &source {
        Source::Url { url, .. } => {
            let nonce = given.unwrap_or_else(Nonce::fresh);
            let step = progress.step("evidence");
            let collected = source::fetch(url, &nonce).await?;
            step.done(url);
            (Some(nonce), collected)
        }
        Source::File(path) => (given, source::read(path)?),
    };
    let evidence = collected.parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let case = Case { evidence: &evidence, settings: &settings, nonce: nonce.as_ref(), is_live: matches!(source, Source::Url { .. }), now };
    if let Some(verdict) = judge::refuse_foreign_root(&case, &source.to_string()) {
        return Ok(verdict);
    }
    let endorsements = match UnverifiedQuote::parse(&evidence.quote) {
        Ok(quote) => collateral::find(args.offline, &settings, &collected, &quote, &progress).await?,
        Err(error) => return Ok(judge::malformed(&case, &source.to_string(), &error.to_string())),
    };
    if let Some(path) = &args.save {
        collected.save(path, nonce.as_ref(), &endorsements)?;
        output.note(&format!("Evidence saved; verify it again with `dstack verify {}`.", path.display()));
    }
    Ok(judge(&case, &endorsements, &source.to_string()))
}

/// The policy that the user names; for apps of the local stack that of the stack; else the built-in one.
fn choose_settings(args: &VerifyArgs, source: &Source, home: &Home) -> Outcome<Settings> {
    if let Some(path) = &args.config {
        return Settings::load(path, &path.display().to_string());
    }
    match source {
        Source::Url { is_local_stack: true, .. } => local_settings(&home.verify_file()),
        _ => Ok(Settings::built_in()),
    }
}

fn local_settings(path: &Path) -> Outcome<Settings> {
    if !path.exists() {
        return Ok(Settings::built_in());
    }
    Settings::load(path, &format!("{} (local stack, used by itself)", path.display()))
}
