//! `dstack os build` and `dstack os lock`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dstack_os_image::build::{self, BuildOptions, GuestPrograms, LockOptions, Progress as Report, RECIPE_NAME};

use crate::{
    args::{Flavor, OsBuildArgs, OsLockArgs},
    failure::{Failure, Outcome},
    output::{Output, fields, human_bytes},
    progress::{Progress, Step},
};

/// Builds an OS image.
///
/// Errors: a tool or package is missing, or the build fails.
pub(crate) fn build(args: &OsBuildArgs, output: Output) -> Outcome {
    let recipe_dir = recipe(args.recipe.as_deref())?;
    let progress = Progress::new(output);
    let guest = match &args.guest_bin {
        Some(folder) => programs(folder)?,
        None => build_guest(&recipe_dir, args.flavor, &progress)?,
    };
    let options = BuildOptions {
        recipe_dir,
        store: super::store(args.images.as_deref())?,
        cache: cache()?,
        flavor: match args.flavor {
            Flavor::Production => build::Flavor::Production,
            Flavor::Development => build::Flavor::Development,
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        git_revision: String::new(),
        guest,
        mirrors: None,
        force: args.force,
    };
    let mut display = Display { progress: &progress, output, step: None };
    let report =
        build::build(&options, &mut |event| display.take(event)).map_err(|error| Failure::from(error).during("building the OS image"))?;
    display.end();
    let image = &report.image;
    let rootfs_bytes = std::fs::metadata(image.rootfs()).map_or(0, |metadata| metadata.len());
    let result = serde_json::json!({
        "name": image.name(), "dir": image.dir(), "os_image_hash": image.os_image_hash(), "rootfs_bytes": rootfs_bytes,
        "is_reused": report.is_reused, "unlocked": image.metadata().unlocked,
    });
    output.result(&result, |palette| {
        let state = if report.is_reused { "unchanged, not built again" } else { "built" };
        let rows = [
            ("image", format!("{} ({state})", image.name())),
            ("OS image hash", image.os_image_hash().to_string()),
            ("root", human_bytes(rootfs_bytes)),
            ("directory", image.dir().display().to_string()),
        ];
        fields(palette, &rows)
    })
}

/// Renews the lock file.
///
/// Errors: the archive cannot be reached, or does not have what the recipe asks for.
pub(crate) fn lock(args: &OsLockArgs, output: Output) -> Outcome {
    let now = dstack_service::clock::unix_seconds();
    let options = LockOptions { recipe_dir: recipe(args.recipe.as_deref())?, cache: cache()?, mirrors: None, now };
    let progress = Progress::new(output);
    let mut display = Display { progress: &progress, output, step: None };
    let report =
        build::lock(&options, &mut |event| display.take(event)).map_err(|error| Failure::from(error).during("renewing the lock"))?;
    display.end();
    let result = serde_json::json!({ "path": report.path, "packages": report.packages, "changed": report.changed.len() });
    output.result(&result, |palette| {
        let rows = [
            ("lock file", report.path.display().to_string()),
            ("packages", format!("{}, of which {} changed", report.packages, report.changed.len())),
        ];
        fields(palette, &rows)
    })
}

/// Shows a build's steps as they come.
struct Display<'a> {
    progress: &'a Progress,
    output: Output,
    step: Option<Step>,
}

impl Display<'_> {
    fn take(&mut self, event: Report) {
        match event {
            Report::Started(phase) => {
                self.end();
                self.step = Some(self.progress.step(phase.as_str()));
            }
            Report::Reused(phase) => match self.step.take() {
                Some(step) => step.skipped("reused"),
                None => self.progress.step(phase.as_str()).skipped("reused"),
            },
            Report::Advanced { done, total, .. } => {
                if let Some(step) = &mut self.step {
                    // In tenths, so that a log does not get a line per package.
                    let tenths = done.saturating_mul(10).checked_div(total).unwrap_or(0);
                    step.update(&format!("{} %", tenths * 10));
                }
            }
            Report::Note(text) => self.output.note(&format!("  note: {text}")),
            _ => {}
        }
    }

    fn end(&mut self) {
        if let Some(step) = self.step.take() {
            step.done("");
        }
    }
}

/// The folder of the recipe: as named, or `os/` of the repository around the working directory or this program.
fn recipe(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let here = std::env::current_dir().ok();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
    let folders = here.iter().flat_map(|here| here.ancestors().map(Path::to_owned)).chain(source);
    folders.map(|folder| folder.join("os")).find(|folder| folder.join(RECIPE_NAME).is_file()).ok_or_else(|| {
        Failure::usage(
            "os/no-recipe",
            format!("there is no os/{RECIPE_NAME} here"),
            "run this inside the repository, or name the folder with --recipe",
        )
    })
}

/// Where builds keep what they can use again.
///
/// Errors: neither XDG_CACHE_HOME nor HOME is set.
pub(crate) fn cache() -> Outcome<PathBuf> {
    let cache = dstack_service::directories::cache();
    let cache = cache.ok_or_else(|| Failure::usage("os/no-cache", "neither XDG_CACHE_HOME nor HOME is set", "set XDG_CACHE_HOME"))?;
    Ok(cache.join("os"))
}

fn programs(folder: &Path) -> Outcome<GuestPrograms> {
    let programs = GuestPrograms { init: folder.join("dstack-init"), agent: folder.join("dstack-guest-agent") };
    let missing = [&programs.init, &programs.agent].into_iter().find(|program| !program.is_file()).cloned();
    match missing {
        None => Ok(programs),
        Some(missing) => Err(Failure::usage(
            "os/no-guest-programs",
            format!("there is no {}", missing.display()),
            "build dstack-guest for the flavour, or leave --guest-bin out",
        )),
    }
}

/// Builds the guest's programs with cargo. The flavours share compiled dependencies and differ in a feature, so the programs are
/// copied to a folder per flavour.
fn build_guest(recipe_dir: &Path, flavor: Flavor, progress: &Progress) -> Outcome<GuestPrograms> {
    let (name, features): (&str, &[&str]) = match flavor {
        Flavor::Production => ("production", &[]),
        Flavor::Development => ("development", &["--features", "simulated"]),
    };
    let mut step = progress.step("guest programs");
    step.update("cargo build --release -p dstack-guest");
    let target = cache()?.join("guest/target");
    let root = recipe_dir.parent().unwrap_or(Path::new("."));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--release", "-p", "dstack-guest"]).args(features).arg("--target-dir").arg(&target);
    // Paths of this machine must not get into the programs: they are measured. Those of the checkout are relative already; naming
    // it here would compile every dependency again in each new clone.
    let remap = format!("--remap-path-prefix={}=/target --remap-path-prefix={}=/cargo", target.display(), cargo_home().display());
    command.env("RUSTFLAGS", remap).env_remove("CARGO_TARGET_DIR").current_dir(root).stdin(Stdio::null()).stdout(Stdio::null());
    let result = command.output().map_err(|error| Failure::io("running", Path::new("cargo"), &error))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr).into_owned();
        let end: Vec<&str> = text.lines().rev().take(12).collect();
        let cause = end.into_iter().rev().collect::<Vec<_>>().join("\n");
        return Err(Failure::new("os/guest-not-built", cause, "correct the error, or name ready programs with --guest-bin")
            .during("building the guest's programs"));
    }
    let folder = cache()?.join("guest").join(name);
    std::fs::create_dir_all(&folder).map_err(|error| Failure::io("creating", &folder, &error))?;
    for program in ["dstack-init", "dstack-guest-agent"] {
        let to = folder.join(program);
        std::fs::copy(target.join("release").join(program), &to).map_err(|error| Failure::io("writing", &to, &error))?;
    }
    step.done("");
    programs(&folder)
}

fn cargo_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).unwrap_or_default()
}
