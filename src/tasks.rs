//! Task groups: the tasks of a group start, fail and drain together.
//!
//! No task outlives its group: a drain cancels and joins the tasks that do not end in time.

use std::{any::Any, future::Future, time::Duration};

use tokio::{
    runtime::{self, Runtime},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// A group of tasks under one stop signal.
#[derive(Debug)]
pub struct Tasks {
    name: &'static str,
    set: JoinSet<(&'static str, TaskResult)>,
    stop: CancellationToken,
    runtime: Option<OwnRuntime>,
}

/// The most threads of a group; its tasks mostly wait for sockets.
const THREADS_MAX: usize = 4;

/// The interval of the timer that stays armed; shorter than the timers of single commands.
const TIMER_INTERVAL: Duration = Duration::from_millis(500);

/// Keeps a short timer armed. A new timer that is due before all others wakes the thread that waits for timers, which
/// would happen for each command with a timeout.
async fn keep_timer_armed() {
    loop {
        tokio::time::sleep(TIMER_INTERVAL).await;
    }
}

/// The runtime of one group. Dropping it cancels the remaining tasks.
#[derive(Debug)]
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The result of a task.
pub type TaskResult = anyhow::Result<()>;

/// A task of the group ended before the stop signal.
#[derive(Debug, thiserror::Error)]
#[error("{group} task {task} ended")]
pub struct TaskFault {
    group: &'static str,
    task: &'static str,
    #[source]
    cause: anyhow::Error,
}

impl Tasks {
    /// An empty group.
    pub fn new(name: &'static str) -> Self {
        Self { name, set: JoinSet::new(), stop: CancellationToken::new(), runtime: None }
    }

    /// An empty group with its own threads, so its tasks do not wait for those of other groups. It has at most one thread
    /// per job, because more threads would move the work of a job between them.
    pub fn on_own_threads(name: &'static str, jobs: usize) -> std::io::Result<Self> {
        let most = jobs.clamp(1, THREADS_MAX);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(most);
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(format!("trunkline-{name}"))
            .enable_all()
            .build()?;
        runtime.spawn(keep_timer_armed());
        Ok(Self { runtime: Some(OwnRuntime(Some(runtime))), ..Self::new(name) })
    }

    /// The stop signal of this group's tasks.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task.
    pub fn start(&mut self, task: &'static str, work: impl Future<Output = TaskResult> + Send + 'static) {
        let work = async move { (task, work.await) };
        match self.runtime.as_ref().and_then(|threads| threads.0.as_ref()) {
            Some(runtime) => self.set.spawn_on(work, runtime.handle()),
            None => self.set.spawn(work),
        };
    }

    /// Waits for the first task that fails, panics, or ends before the stop signal. Never returns without one.
    pub async fn fault(&mut self) -> TaskFault {
        loop {
            let Some(ended) = self.set.join_next().await else { return std::future::pending().await };
            if let Some(fault) = self.fault_of(ended) {
                return fault;
            }
        }
    }

    /// Sends the stop signal, waits for all tasks, and cancels those that still run after `grace`.
    ///
    /// # Errors
    /// The first task that failed or panicked.
    pub async fn drain(mut self, grace: Duration) -> Result<(), TaskFault> {
        self.stop.cancel();
        let mut first = None;
        let all = async {
            while let Some(ended) = self.set.join_next().await {
                first = first.take().or(self.fault_of(ended));
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!(group = self.name, left = self.set.len(), "tasks did not end within the grace");
            self.set.shutdown().await;
        }
        first.map_or(Ok(()), Err)
    }

    fn fault_of(&self, ended: Result<(&'static str, TaskResult), JoinError>) -> Option<TaskFault> {
        let fault = |task, cause| Some(TaskFault { group: self.name, task, cause });
        match ended {
            Ok((_, Ok(()))) if self.stop.is_cancelled() => None,
            Ok((task, Ok(()))) => fault(task, anyhow::anyhow!("it ended before the stop signal")),
            Ok((task, Err(cause))) => fault(task, cause),
            Err(error) if error.is_cancelled() => None,
            Err(error) => fault("panicked", anyhow::anyhow!("{}", panic_text(error.into_panic().as_ref()))),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_fault_with_its_text() {
        let mut tasks = Tasks::new("upstream");
        tasks.start("queues", async { panic!("broken") });
        let fault = tasks.fault().await;
        assert_eq!(fault.to_string(), "upstream task panicked ended");
        assert_eq!(fault.cause.to_string(), "broken");
    }

    #[tokio::test]
    async fn a_group_with_its_own_threads_is_not_delayed_by_others() {
        let mut tasks = Tasks::on_own_threads("upstream", 1).unwrap();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        tasks.start("queues", async move {
            tokio::task::yield_now().await;
            Ok(sender.send(())?)
        });
        // The only thread of this test's runtime waits without giving way.
        assert!(receiver.recv_timeout(Duration::from_secs(5)).is_ok());
        assert!(tasks.drain(Duration::from_secs(5)).await.is_ok());
    }

    #[tokio::test]
    async fn a_task_that_returns_before_the_stop_signal_is_a_fault() {
        let mut tasks = Tasks::new("upstream");
        tasks.start("queues", async { Ok(()) });
        assert!(tasks.fault().await.cause.to_string().contains("before the stop signal"));

        let mut tasks = Tasks::new("upstream");
        let stop = tasks.stop();
        tasks.start("queues", async move {
            stop.cancelled().await;
            Ok(())
        });
        assert!(tasks.drain(Duration::from_secs(5)).await.is_ok());
    }
}
