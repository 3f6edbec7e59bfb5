//! The machine: cores and pinning, CPU time and memory of a process, the kind of file system of a folder.
//!
//! On systems other than Linux nothing is pinned, and the report omits figures that the system does not provide.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// The core of the daemon, and the core that the source and the clients share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cores {
    pub(super) daemon: usize,
    pub(super) load: usize,
}

/// The CPU time of all threads of a process.
pub(super) fn cpu_time(process: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let nanos = threads.flatten().filter_map(|thread| first_number(&thread.path().join("schedstat")));
    Some(Duration::from_nanos(nanos.sum())).filter(|time| !time.is_zero())
}

fn first_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Resident memory of a process, in bytes.
pub(super) fn resident(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The load average of the last minute.
pub(super) fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The path of this program.
pub(super) fn this_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

#[cfg(target_os = "linux")]
mod system {
    use std::path::Path;

    use rustix::{
        fs::statfs,
        process::{Resource, Rlimit, getrlimit, setrlimit},
        thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    };

    use super::Cores;

    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of statfs(2).
    const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];

    /// The last two cores that this process may use; `None` if there is only one.
    pub(crate) fn cores() -> Option<Cores> {
        let allowed = sched_getaffinity(None).ok()?;
        let mut cores = (0..CpuSet::MAX_CPU).rev().filter(|core| allowed.is_set(*core));
        Some(Cores { daemon: cores.next()?, load: cores.next()? })
    }

    /// Pins this thread, and its children, to one core.
    pub(crate) fn pin(core: usize) -> bool {
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).is_ok()
    }

    /// Raises the limit of open files of this process and its children; returns the new limit.
    pub(crate) fn sockets_max() -> usize {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let now = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
        now.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// Whether what is written there never reaches a disk.
    pub(crate) fn is_in_memory(folder: &Path) -> bool {
        statfs(folder).is_ok_and(|found| IN_MEMORY.contains(&i128::from(found.f_type)))
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::path::Path;

    use super::Cores;

    /// The default limit of most systems.
    const SOCKETS_USUAL: usize = 256;

    pub(crate) fn cores() -> Option<Cores> {
        None
    }

    pub(crate) fn pin(_core: usize) -> bool {
        false
    }

    pub(crate) fn sockets_max() -> usize {
        SOCKETS_USUAL
    }

    pub(crate) fn is_in_memory(_folder: &Path) -> bool {
        false
    }
}

pub(super) use system::{cores, is_in_memory, pin, sockets_max};

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time_and_memory() {
        let mut sum = 0_u64;
        let before = cpu_time(std::process::id()).unwrap();
        while cpu_time(std::process::id()).unwrap() < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
        assert_eq!(cpu_time(u32::MAX), None);
        assert_eq!(resident(u32::MAX), None);
    }

    #[test]
    fn two_cores_are_never_the_same_one() {
        if let Some(cores) = cores() {
            assert_ne!(cores.daemon, cores.load);
        }
    }
}
