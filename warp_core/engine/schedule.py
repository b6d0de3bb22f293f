"""Which task is computed next, and which weights are dropped behind it."""

from collections.abc import Sequence

from warp_core.store.results import Store, Task, with_all_they_read


class Schedule:
    """Which tasks must be computed, in an order in which each comes behind what it reads.

    Of those that have one way, the longest is computed, and passes the others.
    """

    def __init__(self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]) -> None:
        self.store, self.keep = store, {task.name for task in keep}
        self.errors: dict[str, Exception] = {}
        missing: dict[str, Task] = {}

        def need(task: Task, weights: bool) -> None:
            if task.name not in missing and not store.has(task, weights and task.weights):
                for each in task.reads:
                    need(each, weights=True)
                missing[task.name] = task

        for task in wanted:
            need(task, weights=task.name in self.keep)
        self.tasks = list(missing.values())
        self.names = missing.keys()
        self.waiting = list(self.tasks)
        self.done: set[str] = set()
        self.readers: dict[str, set[str]] = {}
        longest: dict[str, Task] = {}
        for task in sorted(self.tasks, key=lambda task: task.steps):
            longest[task.way or task.name] = task
        ways = [(task, longest[task.way or task.name]) for task in self.tasks]
        self.passed = {task.name: end for task, end in ways if end is not task}
        for task in self.tasks:
            for each in [task, *task.reads]:
                self.readers.setdefault(each.name, set()).add(task.name)

    def arrived(self) -> list[Task]:
        """Those that were kept by one that is still on its way; they are done from now on."""
        passed = [task for task in self.waiting if task.name in self.passed]
        arrived = [task for task in passed if self.store.has(task, task.weights)]
        for task in arrived:
            self.waiting.remove(task)
        self._drop(self.settle(arrived))
        return arrived

    def next(self) -> Task | None:
        """The first task that can be computed now; what needs a failed one never can."""
        for task in list(self.waiting):
            if task.name in self.done:  # another one has passed it
                self.waiting.remove(task)
                continue
            needs = [each.name for each in task.reads if each.name in self.names]
            needs += [self.passed[task.name].name] if task.name in self.passed else []
            failed = [self.errors[name] for name in needs if name in self.errors]
            if failed:
                self.waiting.remove(task)
                self.errors[task.name] = failed[0]
            elif self.done.issuperset(needs):
                self.waiting.remove(task)
                return task
        return None

    def passing(self, task: Task) -> list[Task]:
        """Those that are kept on the way of this one."""
        return [one for one in self.waiting if self.passed.get(one.name) is task]

    def finish(self, task: Task, error: Exception | None) -> list[Task]:
        """Note it, and drop the weights that nothing will read any more; returns what is done now."""
        # One that began again elsewhere has kept again what had been read and dropped.
        kept = [one for one in self.tasks if self.passed.get(one.name) is task]
        self._drop([each for each in kept if each.name in self.done and self._is_spent(each)])
        passed = self.passing(task)
        for each in passed:  # what it did not keep is computed by itself
            del self.passed[each.name]
        done = [each for each in passed if self.store.has(each, each.weights)]
        if error:
            self.errors[task.name] = error
        else:
            done.append(task)
        self._drop(self.settle(done))
        return done

    def _drop(self, spent: Sequence[Task]) -> None:
        for each in spent:
            self.store.drop(each)

    def settle(self, done: Sequence[Task]) -> list[Task]:
        """Note that these are done; returns those whose weights nothing needs any more."""
        self.done |= {task.name for task in done}
        return [each for task in done for each in self.spent(task)]

    def drop_what_was_left(self, wanted: Sequence[Task]) -> None:
        """Weights of an attempt that was killed before it could drop them."""
        for task in with_all_they_read(wanted):
            if task.name not in self.readers.keys() | self.keep:
                self.store.drop(task)

    def spent(self, task: Task) -> list[Task]:
        """Those whose weights nothing needs any more once this task is done."""
        spent = []
        for each in {each.name: each for each in [task, *task.reads]}.values():
            self.readers[each.name].discard(task.name)
            if self._is_spent(each):
                spent.append(each)
        return spent

    def _is_spent(self, task: Task) -> bool:
        return bool(task.weights and not self.readers[task.name] and task.name not in self.keep)
