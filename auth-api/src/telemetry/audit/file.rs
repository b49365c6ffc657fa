//! File of the audit log, which replicas on one machine may share.
//!
//! A process that appends or rotates holds the lock of a file beside it (`audit.log.lock`), so records of several
//! processes are not interleaved and one of them rotates. Each append looks at the path again: after a
//! rotation by another process or by logrotate the file that is there now is opened, without a signal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of the files: a program that ships logs may read them as a member of the group.
const FILE_MODE: u32 = 0o640;

/// Rotation of the file by this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// By size: `kept_files` older files are kept, as `audit.log.1` (the newest) and so on.
    BySize { max_bytes: u64, kept_files: u32 },
    /// By another program, or never.
    External,
}

/// Point at which an append is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The records survive the end of the process.
    Written,
    /// The records survive a crash of the machine.
    Synced,
}

/// The open file.
#[derive(Debug)]
pub(super) struct AuditFile {
    path: PathBuf,
    rotation: Rotation,
    lock: File,
    file: File,
}

impl AuditFile {
    /// Opens or creates the file.
    pub(super) fn open(path: PathBuf, rotation: Rotation) -> io::Result<Self> {
        let lock = open_to_append(&with_suffix(&path, ".lock"))?;
        let file = open_to_append(&path)?;
        Ok(Self {
            path,
            rotation,
            lock,
            file,
        })
    }

    /// Appends whole records: either all of them or, after an error, none.
    pub(super) fn append(&mut self, records: &[u8], durability: Durability) -> io::Result<()> {
        // A folder that was removed and created again has another one.
        let lock_path = with_suffix(&self.path, ".lock");
        if !leads_to(&lock_path, &self.lock)? {
            self.lock = open_to_append(&lock_path)?;
        }
        self.lock.lock()?;
        let outcome = self.append_locked(records, durability);
        let unlocked = self.lock.unlock();
        outcome.and(unlocked)
    }

    fn append_locked(&mut self, records: &[u8], durability: Durability) -> io::Result<()> {
        if !leads_to(&self.path, &self.file)? {
            self.file = open_to_append(&self.path)?;
        }
        let mut length = self.file.metadata()?.len();
        if let Rotation::BySize {
            max_bytes,
            kept_files,
        } = self.rotation
            && length > 0
            && length + records.len() as u64 > max_bytes
        {
            self.rotate(kept_files, durability)?;
            length = 0;
        }
        let mut outcome = self.file.write_all(records);
        if outcome.is_ok() && durability == Durability::Synced {
            outcome = self.file.sync_data();
        }
        if outcome.is_err() {
            // On a full disk a part may have been written.
            let _ = self.file.set_len(length);
        }
        outcome
    }

    fn rotate(&mut self, kept_files: u32, durability: Durability) -> io::Result<()> {
        let rotated = |number: u32| with_suffix(&self.path, &format!(".{number}"));
        for number in (1..kept_files).rev() {
            rename_if_exists(&rotated(number), &rotated(number + 1))?;
        }
        fs::rename(&self.path, rotated(1))?;
        self.file = open_to_append(&self.path)?;
        if durability == Durability::Synced {
            let folder = self.path.parent().filter(|path| path != &Path::new(""));
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }
}

/// Returns whether `path` leads to an open file.
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(current) => Ok((current.dev(), current.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn rename_if_exists(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .open(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_BYTES: &[u8] = b"123456789\n";

    fn open(path: &Path, max_bytes: u64, kept_files: u32) -> AuditFile {
        let rotation = Rotation::BySize {
            max_bytes,
            kept_files,
        };
        AuditFile::open(path.to_owned(), rotation).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_bounded_number_of_files_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let mut file = open(&path, 25, 2);
        for number in 0..9 {
            let record = format!("record {number}\n");
            file.append(record.as_bytes(), Durability::Synced).unwrap();
        }
        assert_eq!(
            names(folder.path()),
            ["audit.log", "audit.log.1", "audit.log.2", "audit.log.lock"]
        );
        let content = |suffix| fs::read_to_string(with_suffix(&path, suffix)).unwrap();
        assert_eq!(content(""), "record 8\n");
        assert_eq!(content(".1"), "record 6\nrecord 7\n");
        assert_eq!(content(".2"), "record 4\nrecord 5\n");
    }

    #[test]
    fn two_processes_append_to_the_file_that_the_path_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let (mut one, mut two) = (open(&path, 25, 9), open(&path, 25, 9));
        for _ in 0..5 {
            one.append(TEN_BYTES, Durability::Written).unwrap();
            two.append(TEN_BYTES, Durability::Written).unwrap();
        }
        let length = |suffix| fs::metadata(with_suffix(&path, suffix)).unwrap().len();
        assert_eq!(["", ".1", ".2", ".3", ".4"].map(length), [20; 5]);
        assert!(!with_suffix(&path, ".5").exists());
    }

    #[test]
    fn a_file_that_was_moved_away_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let mut file = AuditFile::open(path.clone(), Rotation::External).unwrap();
        file.append(TEN_BYTES, Durability::Written).unwrap();
        fs::rename(&path, with_suffix(&path, "-old")).unwrap();
        file.append(TEN_BYTES, Durability::Written).unwrap();
        assert_eq!(fs::read(&path).unwrap(), TEN_BYTES);
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(file.append(TEN_BYTES, Durability::Written).is_err());
        fs::create_dir(folder.path()).unwrap();
        file.append(TEN_BYTES, Durability::Written).unwrap();
        assert_eq!(fs::read(&path).unwrap(), TEN_BYTES);
    }
}
