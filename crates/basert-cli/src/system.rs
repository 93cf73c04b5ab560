//! What the operating system reports of itself and its memory; none for what it does not report.

use std::fs;
use std::path::Path;

use basert_system::programs;

/// The machine's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Total memory.
    pub total: Option<u64>,
    /// Memory that is still available.
    pub available: Option<u64>,
    /// The limit of this process's control groups.
    pub limit: Option<u64>,
}

impl Memory {
    /// The current state.
    pub fn now() -> Memory {
        if cfg!(target_os = "macos") {
            return Memory {
                total: said("sysctl", &["-n", "hw.memsize"]).and_then(|n| n.parse().ok()),
                ..Memory::default()
            };
        }
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Memory {
            total: of_meminfo(&text, "MemTotal:"),
            available: of_meminfo(&text, "MemAvailable:"),
            limit: group_limit(&groups, Path::new("/sys/fs/cgroup")),
        }
    }

    /// The memory that this process could still use, if known.
    pub fn usable(self) -> Option<u64> {
        [self.available, self.limit].into_iter().flatten().min()
    }
}

fn of_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of a process's control groups and their parents, of either version, mounted at `root`. In a
/// container, the names may be those on the host, while the mounted tree is the container's own.
fn group_limit(groups: &str, root: &Path) -> Option<u64> {
    let of_group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (fields.nth(1)?, fields.next()?);
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|group| root.join(group).join(file));
        folders.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()).min()
    };
    // Version 1 reports a number beyond any machine's memory if there is no limit.
    groups.lines().filter_map(of_group).min().filter(|&limit| limit < 1 << 60)
}

/// Name and version of the operating system and of the kernel.
pub fn name() -> String {
    let field = |text: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(value.trim_matches('"').to_owned())
    };
    let linux = || {
        let system = field(&fs::read_to_string("/etc/os-release").ok()?)?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Some(format!("{system}, Linux {}", kernel.trim()))
    };
    let macos = || Some(format!("macOS {}", said("sw_vers", &["-productVersion"])?));
    let found = if cfg!(target_os = "macos") { macos() } else { linux() };
    found.unwrap_or_else(|| std::env::consts::OS.to_owned())
}

/// The processor's name.
pub fn processor() -> Option<String> {
    if cfg!(target_os = "macos") {
        return said("sysctl", &["-n", "machdep.cpu.brand_string"]);
    }
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(name.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// Makes a write beyond the file size limit (`ulimit -f`) return an error instead of ending the process by a signal.
/// Writes to a closed pipe already do.
pub fn prefer_errors() {
    // SAFETY: no other code handles this signal, and no thread was started yet.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Makes all threads share one heap if the C library is glibc, which otherwise keeps several. The fragmentation that
/// large grammars cause in each would add up.
pub fn share_heap() {
    // SAFETY: sets an allocator parameter, under the allocator's lock.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// The output of a command, if it succeeds.
fn said(command: &str, arguments: &[&str]) -> Option<String> {
    let output =
        programs::command(command).ok()?.args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| group_limit(groups, root.path());
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "4096\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), Some(4096));
        write("memory.max", "1024\n");
        assert_eq!((limit("0::/a/b\n"), limit("0::/of/the/host\n")), (Some(1024), Some(1024)));
        write("memory/c/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("7:cpu,cpuacct:/c\n6:memory:/c\n"), None);
        write("memory/memory.limit_in_bytes", "512\n");
        assert_eq!(limit("7:cpu,cpuacct:/c\n6:memory:/c\n"), Some(512));
        for damaged in ["", "\n", "0", "0:", "x:memory", "6:memory:", "0::/../../etc"] {
            limit(damaged);
        }
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24600000 kB\nMemAvailable:   100 kB\nDamaged: kB\n";
        assert_eq!(of_meminfo(text, "MemTotal:"), Some(24_600_000 * 1024));
        assert_eq!(of_meminfo(text, "MemAvailable:"), Some(102_400));
        assert_eq!((of_meminfo(text, "Damaged:"), of_meminfo("", "MemTotal:")), (None, None));
        let memory = Memory { total: Some(8), available: Some(4), limit: Some(6) };
        assert_eq!((memory.usable(), Memory { limit: Some(3), ..memory }.usable()), (Some(4), Some(3)));
    }
}
