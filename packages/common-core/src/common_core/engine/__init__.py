"""Independent tasks in local processes or on a Ray cluster: timeouts, retries, resume, Ctrl-C.

A task is a module-level function with keyword arguments. Each runs in a fresh process, so that a crash, a leak or a
global setting of one cannot touch another, and every task gets a verdict: an exception, a segmentation fault, the
kernel's out-of-memory killer and a timeout are results with a reason, never the end of the run.
"""

from common_core.engine._child import report_progress as report_progress
from common_core.engine._run import check_run as check_run
from common_core.engine._run import run as run
from common_core.engine._run import sweep as sweep
from common_core.engine._store import ResultStore as ResultStore
from common_core.engine._task import Event as Event
from common_core.engine._task import Status as Status
from common_core.engine._task import Task as Task
from common_core.engine._task import TaskResult as TaskResult
