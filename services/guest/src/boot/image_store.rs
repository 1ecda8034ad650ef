//! Enters images of volumes into the container engine's store, in place: the engine mounts their layers from the volume.
//!
//! The store is that of Docker's `overlay2` driver, as the pinned engine has it (moby, `layer/filestore.go`, `image/fs.go`,
//! `reference/store.go`, `daemon/graphdriver/overlay2`). Below its data root:
//! ```text
//! image/overlay2/imagedb/content/sha256/<id>         the configuration
//! image/overlay2/layerdb/sha256/<chain id>/          diff, size, cache-id, parent
//! image/overlay2/repositories.json                   names
//! overlay2/<cache id>/                                link, lower, diff → the layer's directory on the volume
//! overlay2/l/<link>                                   → ../<cache id>/diff
//! ```
//! The engine must not run yet. Entries of an earlier boot and of images that were pulled stay; what is the same is not written again.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use dstack_manifest::Digest32;
use serde::{Deserialize, Serialize};

use super::images::{CheckedImage, layer};

/// Letters of the short names under `overlay2/l`; the driver itself uses as many.
const LINK_LETTERS: usize = 26;
const MAX_NAMES_BYTES: usize = 16 << 20;

/// Why images are not in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file.
    #[error("{operation} {} of the container engine's store", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store's list of names.
    #[error("{} of the container engine's store is malformed", path.display())]
    Names {
        /// The file.
        path: PathBuf,
    },
}

/// `repositories.json`: repository to reference to image.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Names {
    #[serde(default)]
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

/// Where the engine keeps its images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// The store below the engine's data root.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Enters all images with their names.
    ///
    /// Errors: a file cannot be read or written.
    pub fn enter(&self, images: &[CheckedImage]) -> Result<(), StoreError> {
        if images.is_empty() {
            return Ok(());
        }
        for image in images {
            self.enter_layers(image)?;
            self.write(&format!("image/overlay2/imagedb/content/sha256/{}", image.id), &image.config)?;
        }
        self.name(images)
    }

    fn enter_layers(&self, image: &CheckedImage) -> Result<(), StoreError> {
        let mut chain: Option<Digest32> = None;
        // What the driver stacks below a layer, nearest first.
        let mut below: Vec<String> = Vec::new();
        for diff_id in &image.diff_ids {
            let id = chain.as_ref().map_or(*diff_id, |parent| Digest32::of(format!("sha256:{parent} sha256:{diff_id}").as_bytes()));
            let entry = format!("image/overlay2/layerdb/sha256/{id}");
            let cache = match self.pulled(&entry, &id) {
                Some(cache) => cache,
                None => self.enter_layer(image, diff_id, &id, &below)?,
            };
            let parent = chain.map(|parent| format!("sha256:{parent}"));
            if let Some(parent) = &parent {
                self.write(&format!("{entry}/parent"), parent.as_bytes())?;
            }
            self.write(&format!("{entry}/diff"), format!("sha256:{diff_id}").as_bytes())?;
            self.write(&format!("{entry}/size"), &self.read(&layer(&image.volume, diff_id).with_file_name("size"))?)?;
            // The last file: a layer without it is not there for the engine.
            self.write(&format!("{entry}/cache-id"), cache.as_bytes())?;
            let link = self.read(&self.root.join("overlay2").join(&cache).join("link"))?;
            below.insert(0, format!("l/{}", String::from_utf8_lossy(&link)));
            chain = Some(id);
        }
        Ok(())
    }

    /// The cache id of a layer that was pulled: one of its own, with its files on the disk. What a power cut left of an entry is not one.
    fn pulled(&self, entry: &str, id: &Digest32) -> Option<String> {
        let cache = fs::read_to_string(self.root.join(entry).join("cache-id")).ok()?;
        let is_whole = || fs::read(self.root.join("overlay2").join(&cache).join("link")).is_ok_and(|link| !link.is_empty());
        (!cache.is_empty() && cache != id.to_string() && is_whole()).then_some(cache)
    }

    /// Makes the driver's entry of a layer and returns its cache id, which is the chain id.
    fn enter_layer(&self, image: &CheckedImage, diff_id: &Digest32, id: &Digest32, below: &[String]) -> Result<String, StoreError> {
        let cache = id.to_string();
        let base = format!("overlay2/{cache}");
        let link: String = cache.to_uppercase().chars().take(LINK_LETTERS).collect();
        self.write(&format!("{base}/link"), link.as_bytes())?;
        if !below.is_empty() {
            self.write(&format!("{base}/lower"), below.join(":").as_bytes())?;
        }
        self.link(&format!("{base}/diff"), &layer(&image.volume, diff_id))?;
        self.link(&format!("overlay2/l/{link}"), &Path::new("..").join(&cache).join("diff"))?;
        Ok(cache)
    }

    /// Adds the images' names, by tag and by digest, to those that are there.
    fn name(&self, images: &[CheckedImage]) -> Result<(), StoreError> {
        const FILE: &str = "image/overlay2/repositories.json";
        let path = self.root.join(FILE);
        let mut names: Names = match fs::read(&path) {
            Ok(bytes) if bytes.len() <= MAX_NAMES_BYTES => {
                serde_json::from_slice(&bytes).map_err(|_| StoreError::Names { path: path.clone() })?
            }
            Ok(_) => return Err(StoreError::Names { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Names::default(),
            Err(source) => return Err(StoreError::Io { operation: "read", path, source }),
        };
        for image in images {
            let (repository, tag) = familiar(&image.reference);
            let id = format!("sha256:{}", image.id);
            let known = names.repositories.entry(repository.clone()).or_default();
            if let Some(tag) = tag {
                known.insert(format!("{repository}:{tag}"), id.clone());
            }
            known.insert(format!("{repository}@sha256:{}", image.manifest), id);
        }
        // The one file here that also holds what others wrote: on the disk before it takes the old one's place.
        let bytes = serde_json::to_vec(&names).unwrap_or_default();
        let new = path.with_extension("new");
        fs::File::create(&new)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| StoreError::Io { operation: "write", path, source })
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, StoreError> {
        fs::read(path).map_err(|source| StoreError::Io { operation: "read", path: path.to_owned(), source })
    }

    /// Replaces a file as a whole, unless it has these bytes.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        if fs::read(&path).is_ok_and(|present| present == bytes) {
            return Ok(());
        }
        let replace = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
            let new = path.with_extension("new");
            fs::write(&new, bytes)?;
            fs::rename(&new, &path)
        };
        replace().map_err(|source| StoreError::Io { operation: "write", path: path.clone(), source })
    }

    fn link(&self, name: &str, target: &Path) -> Result<(), StoreError> {
        let path = self.root.join(name);
        if fs::read_link(&path).is_ok_and(|present| present == target) {
            return Ok(());
        }
        let replace = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
            let new = path.with_extension("new");
            let _ = fs::remove_file(&new);
            symlink(target, &new)?;
            fs::rename(&new, &path)
        };
        replace().map_err(|source| StoreError::Io { operation: "write", path: path.clone(), source })
    }
}

/// Repository and tag as the engine writes them: without its default registry, and with its default tag. No tag where the reference
/// names a digest.
fn familiar(reference: &str) -> (String, Option<String>) {
    let bare = ["index.docker.io/", "docker.io/"].iter().find_map(|registry| reference.strip_prefix(registry)).unwrap_or(reference);
    let bare = bare.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(bare);
    let (name, digest) = bare.split_once('@').map_or((bare, None), |(name, digest)| (name, Some(digest)));
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    };
    (repository.to_owned(), digest.is_none().then(|| tag.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::{
        super::images::tests::{Volume, checked, must_volume},
        *,
    };

    fn must_images(volume: &Volume, reference: &str) -> Vec<CheckedImage> {
        checked(volume, reference, &format!("sha256:{}", volume.manifest)).unwrap()
    }

    fn text(root: &Path, name: &str) -> String {
        fs::read_to_string(root.join(name)).unwrap()
    }

    #[test]
    fn layers_are_entered_in_a_chain_that_ends_on_the_volume() {
        let (volume, data) = (must_volume(&["base", "top"]), tempfile::tempdir().unwrap());
        let images = must_images(&volume, "hello:1");

        ImageStore::new(data.path()).enter(&images).unwrap();

        let (base, top) = (Digest32::of(b"base"), Digest32::of(b"top"));
        let chain = Digest32::of(format!("sha256:{base} sha256:{top}").as_bytes());
        let entry = format!("image/overlay2/layerdb/sha256/{chain}");
        assert_eq!(text(data.path(), &format!("{entry}/parent")), format!("sha256:{base}"));
        assert_eq!(text(data.path(), &format!("{entry}/diff")), format!("sha256:{top}"));
        assert_eq!(text(data.path(), &format!("{entry}/size")), "3");
        let cache = text(data.path(), &format!("{entry}/cache-id"));
        let lower = text(data.path(), &format!("overlay2/{cache}/lower"));
        assert_eq!(text(data.path(), &format!("overlay2/{lower}/file")), "base");
        assert_eq!(text(data.path(), &format!("overlay2/{cache}/diff/file")), "top");
    }

    #[test]
    fn an_image_is_found_by_tag_and_by_digest_beside_others() {
        let (volume, data) = (must_volume(&["base"]), tempfile::tempdir().unwrap());
        let images = must_images(&volume, "docker.io/library/hello:1");
        fs::create_dir_all(data.path().join("image/overlay2")).unwrap();
        fs::write(data.path().join("image/overlay2/repositories.json"), r#"{"Repositories":{"a":{"a:1":"sha256:00"}}}"#).unwrap();

        ImageStore::new(data.path()).enter(&images).unwrap();

        let names: Names = serde_json::from_str(&text(data.path(), "image/overlay2/repositories.json")).unwrap();
        let id = format!("sha256:{}", images[0].id);
        assert_eq!(names.repositories["a"]["a:1"], "sha256:00");
        assert_eq!(names.repositories["hello"]["hello:1"], id);
        assert_eq!(names.repositories["hello"][&format!("hello@sha256:{}", volume.manifest)], id);
    }

    #[test]
    fn a_second_boot_changes_nothing_but_where_the_volume_is() {
        let (volume, data) = (must_volume(&["base"]), tempfile::tempdir().unwrap());
        let mut images = must_images(&volume, "hello:1");
        let store = ImageStore::new(data.path());
        store.enter(&images).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(volume.directory.path().join("v"), elsewhere.path().join("v")).unwrap();
        images[0].volume = elsewhere.path().join("v");

        store.enter(&images).unwrap();

        assert_eq!(text(data.path(), &format!("overlay2/{}/diff/file", Digest32::of(b"base"))), "base");
    }

    #[test]
    fn a_layer_that_was_pulled_keeps_its_files() {
        let (volume, data) = (must_volume(&["base", "top"]), tempfile::tempdir().unwrap());
        let base = Digest32::of(b"base");
        for (name, content) in [
            (format!("image/overlay2/layerdb/sha256/{base}/cache-id"), "pulled"),
            ("overlay2/pulled/link".to_owned(), "ABC"),
            ("overlay2/pulled/diff/file".to_owned(), "base"),
        ] {
            fs::create_dir_all(data.path().join(&name).parent().unwrap()).unwrap();
            fs::write(data.path().join(name), content).unwrap();
        }

        ImageStore::new(data.path()).enter(&must_images(&volume, "hello:1")).unwrap();

        let chain = Digest32::of(format!("sha256:{base} sha256:{}", Digest32::of(b"top")).as_bytes());
        assert_eq!(text(data.path(), &format!("overlay2/{chain}/lower")), "l/ABC");
        assert!(!data.path().join(format!("overlay2/{base}")).exists());
    }

    #[test]
    fn what_a_power_cut_left_of_an_entry_is_made_again() {
        for left in ["", "gone"] {
            let (volume, data) = (must_volume(&["base"]), tempfile::tempdir().unwrap());
            let base = Digest32::of(b"base");
            let entry = data.path().join(format!("image/overlay2/layerdb/sha256/{base}"));
            fs::create_dir_all(&entry).unwrap();
            fs::write(entry.join("cache-id"), left).unwrap();

            ImageStore::new(data.path()).enter(&must_images(&volume, "hello:1")).unwrap();

            assert_eq!(text(&entry, "cache-id"), base.to_string());
            assert_eq!(text(data.path(), &format!("overlay2/{base}/diff/file")), "base");
        }
    }

    #[test]
    fn a_list_of_names_that_is_damaged_is_not_overwritten() {
        let (volume, data) = (must_volume(&["base"]), tempfile::tempdir().unwrap());
        let path = data.path().join("image/overlay2/repositories.json");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "{").unwrap();

        let error = ImageStore::new(data.path()).enter(&must_images(&volume, "hello:1")).unwrap_err();

        assert!(matches!(error, StoreError::Names { .. }), "{error}");
        assert_eq!(fs::read_to_string(path).unwrap(), "{");
    }

    #[test]
    fn references_are_written_as_the_engine_writes_them() {
        let pair = |repository: &str, tag: Option<&str>| (repository.to_owned(), tag.map(str::to_owned));
        assert_eq!(familiar("nginx"), pair("nginx", Some("latest")));
        assert_eq!(familiar("docker.io/library/nginx:1"), pair("nginx", Some("1")));
        assert_eq!(familiar("docker.io/a/b"), pair("a/b", Some("latest")));
        assert_eq!(familiar("r:5000/a"), pair("r:5000/a", Some("latest")));
        assert_eq!(familiar("a@sha256:00"), pair("a", None));
        assert_eq!(familiar("a:1@sha256:00"), pair("a", None));
    }
}
