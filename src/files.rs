//! Writing and digesting files.
//!
//! Owns the only ways by which the project writes a file or a folder: next to its place,
//! synced, then renamed, so that a file is either absent, old or complete at every instant.
//! A link is followed: what it leads to is replaced, never the link. What is no regular file
//! (or, for a folder, no folder) is never replaced: the rename would remove a pipe or a device.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};

use crate::diagnose::Diagnose;

/// Mode of a published file before the umask: readable by everyone.
const FILE_MODE: u32 = 0o644;
/// Mode of a file that stays with its owner.
const PRIVATE_MODE: u32 = 0o600;

/// What stands at a path is not what is read or replaced there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A pipe, a device, a folder.
    #[error("`{}` is there and is not a regular file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// A file, a pipe, a device.
    #[error("`{}` is there and is not a folder", path.display())]
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// More than is read.
    #[error("`{}` has {bytes} bytes, more than the {limit} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No file to read.
    #[error("there is no file `{}`", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// No folder to write a file into.
    #[error("there is no folder `{}` to write `{}` into", folder.display(), path.display())]
    NoFolder {
        /// Where it should be.
        folder: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// A link whose end is not there.
    #[error("`{}` is a link to what is not there", path.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
    },
}

impl Diagnose for FileError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotAFile { .. } => "name a regular file, or a link to one".to_owned(),
            Self::NotAFolder { .. } => "name a folder, old or new".to_owned(),
            Self::TooLarge { .. } => "check that it is the file that is meant".to_owned(),
            Self::Missing { .. } => "check the path for a typing mistake".to_owned(),
            Self::NoFolder { .. } => "make the folder first, or name another one".to_owned(),
            Self::DanglingLink { .. } => "remove the link, or make what it leads to".to_owned(),
        })
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        let kind = match error {
            FileError::Missing { .. } | FileError::NoFolder { .. } => io::ErrorKind::NotFound,
            _ => io::ErrorKind::InvalidInput,
        };
        // `diagnose` finds its hint again.
        Self::new(kind, error)
    }
}

/// Where [`write_atomically`] to `path` will put the file: `path`, or what its link leads to.
/// Ask before something is computed that could not be written.
pub fn place_of_file(path: &Path) -> io::Result<PathBuf> {
    let place = place(path, std::fs::Metadata::is_file, |path| FileError::NotAFile { path })?;
    let folder = folder_of(&place);
    if folder.is_dir() {
        return Ok(place);
    }
    Err(FileError::NoFolder { folder: folder.to_owned(), path: path.to_owned() }.into())
}

/// The folder in which a file lies.
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

fn place(
    path: &Path,
    fits: impl FnOnce(&std::fs::Metadata) -> bool,
    occupied: impl FnOnce(PathBuf) -> FileError,
) -> io::Result<PathBuf> {
    let Ok(there) = path.symlink_metadata() else { return Ok(path.to_owned()) };
    let end = if there.is_symlink() {
        let dangling = |_| FileError::DanglingLink { path: path.to_owned() };
        path.canonicalize().map_err(dangling)?
    } else {
        path.to_owned()
    };
    if fits(&fs::metadata(&end)?) { Ok(end) } else { Err(occupied(path.to_owned()).into()) }
}

/// Writes `bytes` to `path` through a temporary file beside it.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// Like [`write_atomically`], with the bytes produced by `write` into a buffered writer.
///
/// When `write` fails, nothing of it remains.
pub fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> io::Result<()> {
    write_with_mode(path, FILE_MODE, |file| write(file))
}

/// Like [`write_atomically_with`], for a file that only its owner may read.
pub fn write_privately_with(
    path: &Path,
    write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> io::Result<()> {
    write_with_mode(path, PRIVATE_MODE, write)
}

#[cfg_attr(not(unix), expect(unused_variables))]
fn write_with_mode(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
    };
    let place = place_of_file(path)?;
    let folder = folder_of(&place);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".heirloom-").suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // tempfile's own default is 0600, which would make adapters unreadable to others.
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    let mut temporary = builder.tempfile_in(folder).map_err(named)?;
    {
        let mut buffered = io::BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(named)?;
    }
    temporary.as_file().sync_all().map_err(named)?;
    temporary.persist(&place).map_err(|error| named(error.error))?;
    sync_folder(folder)
}

/// A folder that is written next to its place and appears there only when complete.
///
/// Dropped without [`FolderInProgress::finish`], nothing remains.
#[derive(Debug)]
pub struct FolderInProgress {
    temporary: tempfile::TempDir,
    target: PathBuf,
}

impl FolderInProgress {
    /// Starts a folder that will appear as `target`.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let target =
            place(target, std::fs::Metadata::is_dir, |path| FileError::NotAFolder { path })?;
        let parent = folder_of(&target);
        fs::create_dir_all(parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".heirloom-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o755));
        }
        Ok(Self { temporary: builder.tempdir_in(parent)?, target })
    }

    /// Where to write for now.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Where the folder will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs the folder and moves it to its place; with `replace`, an existing folder there
    /// gives way, and is deleted only when the new one is in its place.
    pub fn finish(self, replace: bool) -> io::Result<()> {
        sync_folder(self.temporary.path())?;
        let parent = folder_of(&self.target);
        if replace && self.target.exists() {
            let mut aside = tempfile::Builder::new();
            let aside = aside.prefix(".heirloom-").suffix(".old").tempdir_in(parent)?;
            let old = aside.path().join("old");
            if let Err(error) = swap(self.temporary.path(), &self.target, &old) {
                if old.exists() {
                    // It could not even be put back: better under an odd name than gone.
                    let _kept = aside.keep();
                }
                return Err(error);
            }
            let _moved = self.temporary.keep();
            sync_folder(parent)?;
            return aside.close();
        }
        fs::rename(self.temporary.path(), &self.target)?;
        // The folder has its new name: nothing is left for the guard to remove.
        let _moved = self.temporary.keep();
        sync_folder(parent)
    }
}

/// Moves `target` to `aside` and `new` to `target`; where the second fails, undoes the first.
fn swap(new: &Path, target: &Path, aside: &Path) -> io::Result<()> {
    fs::rename(target, aside)?;
    fs::rename(new, target).or_else(|error| {
        fs::rename(aside, target)?;
        Err(error)
    })
}

/// Makes renames inside `folder` durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// The bytes of a regular file, unless they are more than `limit`; a pipe would be waited on
/// for ever.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: path.to_owned() }.into(),
        _ => error,
    })?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() }.into());
    }
    let bytes = metadata.len();
    if bytes > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes, limit }.into());
    }
    fs::read(path)
}

/// Like [`read_bounded`]; `None` where there is nothing by this name.
pub fn read_if_there(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    match read_bounded(path, limit) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// SHA-256 of a file, streamed; lower-case hex.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// SHA-256 of bytes; lower-case hex.
pub fn sha256_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place with a folder `there` that holds `file` with the word `old`.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let there = place.path().join("there");
        fs::create_dir(&there).unwrap();
        write_atomically(&there.join("file"), b"old").unwrap();
        (place, there)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// A pipe in `folder`, made by the system's own tool.
    #[cfg(unix)]
    fn pipe(folder: &Path) -> PathBuf {
        let path = folder.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_a_folder_is_not_replaced_by_a_file() {
        use std::os::unix::fs::FileTypeExt as _;
        let (place, there) = place();
        let pipe = pipe(place.path());
        for path in [&pipe, &there] {
            let refused = write_atomically(path, b"new").unwrap_err();
            assert!(refused.to_string().ends_with("is not a regular file"), "{refused}");
            assert_eq!(refused.hint().unwrap(), "name a regular file, or a link to one");
        }
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(names(&there), ["file"]);
        assert_eq!(names(place.path()).len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_more_than_the_limit_is_not_read() {
        let (place, there) = place();
        for path in [pipe(place.path()), there.clone()] {
            let refused = read_if_there(&path, 3).unwrap_err();
            assert!(refused.to_string().ends_with("is not a regular file"), "{refused}");
        }
        assert_eq!(read_if_there(&there.join("file"), 3).unwrap().unwrap(), b"old");
        let refused = read_if_there(&there.join("file"), 2).unwrap_err();
        assert!(refused.to_string().ends_with("has 3 bytes, more than the 2 that are read"));
        assert!(refused.hint().is_some());
        assert_eq!(read_if_there(&there.join("none"), 2).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_stays_a_link() {
        let (place, there) = place();
        let (link, nowhere) = (place.path().join("link"), place.path().join("nowhere"));
        fs::os::unix::fs::symlink("there/file", &link).unwrap();
        write_atomically(&link, b"new").unwrap();
        assert_eq!(fs::read(there.join("file")).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(names(&there), ["file"]);
        fs::os::unix::fs::symlink("absent", &nowhere).unwrap();
        let refused = write_atomically(&nowhere, b"new").unwrap_err();
        assert!(refused.to_string().ends_with("is a link to what is not there"), "{refused}");
        assert!(nowhere.symlink_metadata().unwrap().is_symlink());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_a_file_is_not_replaced_by_a_folder() {
        let (place, there) = place();
        for path in [pipe(place.path()), there.join("file")] {
            let refused = FolderInProgress::beside(&path).unwrap_err();
            assert!(refused.to_string().ends_with("is not a folder"), "{refused}");
            assert!(refused.hint().is_some());
        }
        let link = place.path().join("link");
        fs::os::unix::fs::symlink("there", &link).unwrap();
        let folder = FolderInProgress::beside(&link).unwrap();
        write_atomically(&folder.path().join("file"), b"new").unwrap();
        folder.finish(true).unwrap();
        assert_eq!(fs::read(there.join("file")).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (place, there) = place();
        let (private, public) = (place.path().join("private"), there.join("file"));
        write_privately_with(&private, |file| file.write_all(b"secret")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&private), mode(&public) & 0o600), (0o600, 0o600));
        assert_eq!(fs::read(&private).unwrap(), b"secret");
    }

    #[test]
    fn a_folder_gives_way_to_a_complete_one() {
        let (place, there) = place();
        let folder = FolderInProgress::beside(&there).unwrap();
        write_atomically(&folder.path().join("file"), b"new").unwrap();
        folder.finish(true).unwrap();
        assert_eq!(fs::read(there.join("file")).unwrap(), b"new");
        assert_eq!(names(place.path()), ["there"]);
    }

    #[test]
    fn a_folder_that_cannot_be_replaced_stays() {
        let (place, there) = place();
        let aside = place.path().join("aside");
        assert!(swap(&place.path().join("absent"), &there, &aside).is_err());
        assert_eq!(fs::read(there.join("file")).unwrap(), b"old");
        assert_eq!(names(place.path()), ["there"]);
        // Until the caller deletes it, the old folder is complete.
        let new = place.path().join("new");
        fs::create_dir(&new).unwrap();
        swap(&new, &there, &aside).unwrap();
        assert_eq!(fs::read(aside.join("file")).unwrap(), b"old");
        assert!(names(&there).is_empty());
    }

    #[test]
    fn a_folder_is_not_replaced_unless_asked() {
        let (place, there) = place();
        let folder = FolderInProgress::beside(&there).unwrap();
        assert!(folder.finish(false).is_err());
        assert_eq!(fs::read(there.join("file")).unwrap(), b"old");
        assert_eq!(names(place.path()), ["there"]);
    }
}
