//! Executor of tasks in virtual time: deterministic, in one thread, with processes that can be paused and killed.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

type TaskId = u64;
type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Executor. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Executor(Rc<Inner>);

#[derive(Default)]
struct Inner {
    now: Cell<Duration>,
    next_number: Cell<u64>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    ready: ReadyQueue,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
}

type ReadyQueue = Arc<Mutex<VecDeque<TaskId>>>;

struct Task {
    schedule: Rc<Schedule>,
    /// `None` while it is polled.
    future: Option<LocalFuture>,
    waker: Waker,
}

/// Execution of the tasks of one process.
#[derive(Default)]
pub(super) struct Schedule {
    state: Cell<ScheduleState>,
    /// Tasks that were woken while the process was paused.
    deferred: RefCell<Vec<TaskId>>,
    /// Times for which the process was paused, together.
    paused_for: Cell<Duration>,
    paused_at: Cell<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ScheduleState {
    #[default]
    Running,
    Paused,
    Killed,
}

struct Timer {
    at: Duration,
    number: u64,
    action: Action,
}

enum Action {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
}

struct TaskWaker {
    task: TaskId,
    ready: ReadyQueue,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().push_back(self.task);
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl Executor {
    pub(super) fn now(&self) -> Duration {
        self.0.now.get()
    }

    fn number(&self) -> u64 {
        let number = self.0.next_number.get();
        self.0.next_number.set(number + 1);
        number
    }

    /// Starts a task of a process.
    pub(super) fn spawn(
        &self,
        schedule: &Rc<Schedule>,
        future: impl Future<Output = ()> + 'static,
    ) {
        if schedule.state.get() == ScheduleState::Killed {
            return;
        }
        let id = self.number();
        let ready = Arc::clone(&self.0.ready);
        let task = Task {
            schedule: Rc::clone(schedule),
            future: Some(Box::pin(future)),
            waker: Arc::new(TaskWaker { task: id, ready }).into(),
        };
        self.0.tasks.borrow_mut().insert(id, task);
        self.0.ready.lock().push_back(id);
    }

    /// Calls `call` at `at`.
    pub(super) fn call_at(&self, at: Duration, call: impl FnOnce() + 'static) {
        self.set_timer(at, Action::Call(Box::new(call)));
    }

    fn set_timer(&self, at: Duration, action: Action) {
        let number = self.number();
        let timer = Timer { at, number, action };
        self.0.timers.borrow_mut().push(Reverse(timer));
    }

    /// Waits until `at`.
    pub(super) fn sleep_until(&self, at: Duration) -> Sleep {
        Sleep {
            executor: self.clone(),
            at,
            is_set: false,
        }
    }

    pub(super) fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Runs every task until `end`.
    pub(super) fn run_until(&self, end: Duration) {
        loop {
            self.poll_ready();
            let timer = {
                let mut timers = self.0.timers.borrow_mut();
                if timers.peek().is_none_or(|Reverse(next)| next.at > end) {
                    break;
                }
                timers.pop().expect("there is a timer").0
            };
            self.0.now.set(timer.at.max(self.now()));
            match timer.action {
                Action::Wake(waker) => waker.wake(),
                Action::Call(call) => call(),
            }
        }
        self.0.now.set(end);
    }

    fn poll_ready(&self) {
        loop {
            let Some(id) = self.0.ready.lock().pop_front() else {
                return;
            };
            let Some((mut future, waker)) = self.take(id) else {
                continue;
            };
            let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
            let mut tasks = self.0.tasks.borrow_mut();
            match poll {
                Poll::Ready(()) => drop(tasks.remove(&id)),
                Poll::Pending => {
                    if let Some(task) = tasks.get_mut(&id) {
                        task.future = Some(future);
                    }
                }
            }
        }
    }

    /// Takes the future of a task to be polled, unless its process does not run.
    fn take(&self, id: TaskId) -> Option<(LocalFuture, Waker)> {
        let mut tasks = self.0.tasks.borrow_mut();
        let task = tasks.get_mut(&id)?;
        match task.schedule.state.get() {
            ScheduleState::Running => Some((task.future.take()?, task.waker.clone())),
            ScheduleState::Paused => {
                task.schedule.deferred.borrow_mut().push(id);
                None
            }
            ScheduleState::Killed => None,
        }
    }

    /// Stops a process, as SIGSTOP does: time goes on.
    pub(super) fn pause(&self, schedule: &Schedule) {
        if schedule.state.get() == ScheduleState::Running {
            schedule.state.set(ScheduleState::Paused);
            schedule.paused_at.set(self.now());
        }
    }

    pub(super) fn resume(&self, schedule: &Schedule) {
        if schedule.state.get() == ScheduleState::Paused {
            schedule.state.set(ScheduleState::Running);
            let paused_for =
                schedule.paused_for.get() + self.now().saturating_sub(schedule.paused_at.get());
            schedule.paused_for.set(paused_for);
            self.0.ready.lock().extend(schedule.deferred.take());
        }
    }

    /// Ends a process with its tasks.
    pub(super) fn kill(&self, schedule: &Rc<Schedule>) {
        schedule.state.set(ScheduleState::Killed);
        let killed: Vec<_> = {
            let mut tasks = self.0.tasks.borrow_mut();
            let ids: Vec<_> = tasks
                .iter()
                .filter(|(_, task)| Rc::ptr_eq(&task.schedule, schedule))
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| tasks.remove(id)).collect()
        };
        drop(killed);
    }

    /// Ends every task, so that what they share is freed.
    pub(super) fn clear(&self) {
        let (tasks, timers) = (self.0.tasks.take(), self.0.timers.take());
        drop((tasks, timers));
    }
}

impl Schedule {
    pub(super) fn is_paused(&self) -> bool {
        self.state.get() == ScheduleState::Paused
    }

    /// Returns the time for which the process has been paused until `now`.
    pub(super) fn paused_for(&self, now: Duration) -> Duration {
        let current = if self.is_paused() {
            now.saturating_sub(self.paused_at.get())
        } else {
            Duration::ZERO
        };
        self.paused_for.get() + current
    }
}

/// Future that ends at a time.
pub(super) struct Sleep {
    executor: Executor,
    at: Duration,
    is_set: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.is_set {
            self.is_set = true;
            let waker = context.waker().clone();
            self.executor.set_timer(self.at, Action::Wake(waker));
        }
        Poll::Pending
    }
}
