//! Builds or locks dstack-os without the `dstack` command: `os-image lock|build|verify OS_DIR STORE [production] [INIT AGENT]`.
#![allow(clippy::print_stdout, reason = "a command line program")]

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use dstack_api::UserFacing;
use dstack_os_image::{
    Image, ImageStore,
    build::{self, BuildOptions, Flavor, GuestPrograms, LockOptions, Progress},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let argument = |index: usize| arguments.get(index).map(PathBuf::from).ok_or("usage: os-image lock|build|verify OS_DIR STORE …");
    let (recipe_dir, store) = (argument(1)?, argument(2)?);
    let cache = PathBuf::from(env::var("HOME")?).join(".cache/dstack/os");
    let started = Instant::now();
    let mut report = |progress: Progress| println!("{:>7.2}s {progress:?}", started.elapsed().as_secs_f64());
    match argument(0)?.to_str() {
        Some("lock") => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let done = build::lock(&LockOptions { recipe_dir, cache, mirrors: None, now }, &mut report).map_err(explain)?;
            println!("{} packages, {} changed", done.packages, done.changed.len());
        }
        Some("build") => {
            let is_production = arguments.iter().any(|word| word == "production");
            let flavor = if is_production { Flavor::Production } else { Flavor::Development };
            let programs: Vec<&String> = arguments.iter().skip(3).filter(|word| *word != "production").collect();
            let [init, agent] = programs.as_slice() else { return Err("give the paths of dstack-init and dstack-guest-agent".into()) };
            let options = BuildOptions {
                recipe_dir,
                store,
                cache,
                flavor,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                git_revision: String::new(),
                guest: GuestPrograms { init: PathBuf::from(init), agent: PathBuf::from(agent) },
                mirrors: None,
                force: env::var_os("FORCE").is_some(),
            };
            let done = build::build(&options, &mut report).map_err(explain)?;
            println!("{} {} reused: {}", done.image.dir().display(), done.image.os_image_hash(), done.is_reused);
        }
        _ => verify(&store)?,
    }
    println!("{:.2}s", started.elapsed().as_secs_f64());
    Ok(())
}

fn verify(store: &Path) -> Result<(), Box<dyn Error>> {
    for entry in ImageStore::new(store).list().map_err(explain)? {
        let image: Image = entry.image.map_err(explain)?;
        let verified = dstack_os_image::verify(&image).map_err(explain)?;
        println!("{} {}", entry.name, verified.os_image_hash());
    }
    Ok(())
}

fn explain<E: UserFacing>(error: E) -> String {
    let mut text = format!("{error} [{}]", error.code());
    let mut source = Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!("\n  cause: {cause}"));
        source = cause.source();
    }
    format!("{text}\n  fix: {}", error.fix())
}
