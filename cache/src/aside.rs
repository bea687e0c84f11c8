//! Damaged files are moved out of everybody's way, not deleted: someone may want
//! to know what happened to them.

use std::fs;
use std::path::Path;

use crate::directory::unique_name;

/// Moves a file or directory of the cache into `aside/`. Best effort: where that
/// is not possible the next reader will stumble over it again, which is safe.
pub fn set_aside(cache: &Path, path: &Path) {
    let aside = cache.join("aside");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let target = aside.join(format!("{name}.{}", unique_name()));
    if fs::create_dir_all(&aside).and_then(|()| fs::rename(path, &target)).is_err() {
        let _ = fs::remove_file(path);
    }
}
