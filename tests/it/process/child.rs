//! The built program as a child process. Drop kills it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child as Process, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use trunkline::clock;

/// Longest wait for one condition on a busy machine.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
/// Interval between two checks of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits at most for `within` until `condition` returns a value.
pub(crate) async fn eventually<T>(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let until = clock::now() + within;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(clock::now() < until, "not within {within:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A running program. Its output goes to files, so that it never waits for a reader.
pub(crate) struct Child {
    process: Process,
    out: PathBuf,
    err: PathBuf,
}

impl Child {
    /// Starts `trunkline` with these arguments, in `folder`.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_with(folder, arguments, &[])
    }

    /// Starts `trunkline` with these arguments and environment variables in `folder`.
    pub(crate) fn start_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(folder, command)
    }

    /// Starts any command without the inherited variables that configure the program.
    pub(crate) fn spawn(folder: &Path, mut command: Command) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (folder.join(format!("{number}.out")), folder.join(format!("{number}.err")));
        let file = |path: &Path| Stdio::from(File::create(path).unwrap());
        for name in ["RUST_LOG", "TRUNKLINE_TOKEN"] {
            command.env_remove(name);
        }
        // Temporary files of a killed program are deleted with the folder.
        command.env("TMPDIR", folder);
        command.current_dir(folder).stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { process, out, err }
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap()).into_owned()
    }

    /// Its complete output, for the message of a failed test.
    pub(crate) fn printed_output(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout(), self.stderr())
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends `KILL` and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends a signal: `TERM`, `INT`, …
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &id]).status().unwrap();
        assert!(sent.success(), "kill -{name} {id}");
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Waits for its exit and returns the exit code.
    pub(crate) async fn wait_for_exit(&mut self, within: Duration) -> i32 {
        let until = clock::now() + within;
        loop {
            if let Some(status) = self.has_ended() {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.printed_output()));
            }
            assert!(clock::now() < until, "still running after {within:?}\n{}", self.printed_output());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until it has printed this on standard output or standard error.
    pub(crate) async fn wait_for_output(&mut self, words: &str) {
        let until = clock::now() + WAIT_MAX;
        while !self.printed_output().contains(words) {
            assert!(self.has_ended().is_none(), "ended without {words:?}\n{}", self.printed_output());
            assert!(clock::now() < until, "did not print {words:?}\n{}", self.printed_output());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
