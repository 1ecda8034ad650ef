//! Size-capped log files that another process appends to.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// How large a log may grow and how many older pieces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// A file beyond this is rotated; 0 never.
    pub max_bytes: u64,
    /// Older pieces `<file>.1` (newest) to `<file>.<backups>`.
    pub backups: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 4 << 20, backups: 3 }
    }
}

impl Rotation {
    /// Rotates `path` in place when it is too large: its content is copied away and the file is emptied, so a writer that
    /// opened it for appending goes on without noticing. What is written between copy and truncation is lost.
    ///
    /// Errors: the directory cannot be written. A missing file is fine.
    pub fn apply(&self, path: &Path) -> io::Result<()> {
        let size = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => return Ok(()),
        };
        if self.max_bytes == 0 || size <= self.max_bytes {
            return Ok(());
        }
        if self.backups > 0 {
            for index in (1..self.backups).rev() {
                match fs::rename(piece(path, index), piece(path, index + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::copy(path, piece(path, 1))?;
        }
        File::options().write(true).open(path)?.set_len(0)
    }
}

fn piece(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn keeps_the_newest_pieces_and_an_appending_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        let rotation = Rotation { max_bytes: 3, backups: 2 };

        for text in ["aaaa", "bbbb", "cccc", "d"] {
            writer.write_all(text.as_bytes()).unwrap();
            rotation.apply(&path).unwrap();
        }

        assert_eq!(fs::read_to_string(&path).unwrap(), "d");
        assert_eq!(fs::read_to_string(directory.path().join("log.1")).unwrap(), "cccc");
        assert_eq!(fs::read_to_string(directory.path().join("log.2")).unwrap(), "bbbb");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
