"""On the path of a mortal scheduler and of all it starts: the whole of it is killed right after chosen writes.

A write is a transaction of the store or a file that is put in its place. All processes count together, in the file that KILLED_COUNT names;
after the writes whose number leaves the rest KILLED_REST when divided by KILLED_EVERY, the scheduler and the process that wrote are killed (SIGKILL)."""
import fcntl
import os

def wrote(what: str) -> None:
    "Count a write; die when it is its turn."
    with open(os.environ["KILLED_COUNT"], "a+b") as count:
        fcntl.flock(count, fcntl.LOCK_EX)
        number = count.seek(0, os.SEEK_END) + 1
        count.write(b".")
        count.flush()
        if number % int(os.environ["KILLED_EVERY"]) != int(os.environ["KILLED_REST"]): return
        with open(os.environ["KILLED_COUNT"] + ".log", "a") as log: log.write(f"{number} {what}\n")
        os.kill(int(os.environ["KILLED_SCHEDULER"]), 9)
        os.kill(os.getpid(), 9)


def mortal() -> None:
    "From now on this process counts its writes."
    import contextlib

    from within.store import StoreBase
    transaction = StoreBase.transaction
    @contextlib.contextmanager
    def counted(self):
        with transaction(self) as c: yield c
        import sys
        frame = sys._getframe(2)
        wrote(f"transaction in {frame.f_code.co_name} of {frame.f_back.f_code.co_name} of {frame.f_back.f_back.f_code.co_name if frame.f_back.f_back else '-'}")
    StoreBase.transaction = counted
    for name in ("replace", "rename"):
        def moved(a, b, *more, _do=getattr(os, name), **kw):
            _do(a, b, *more, **kw)
            wrote(f"{os.path.basename(os.fspath(b))} put in its place")
        setattr(os, name, moved)


if os.environ.get("KILLED_SCHEDULER"): mortal()
