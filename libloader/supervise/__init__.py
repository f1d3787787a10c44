"""The engine in a process of its own, and a front that never goes away.

    front process                                           engine child
    supervisor  threads, one child at a time      pipes     child     frames in and out
      launch    spawn, pipes, the child's log    <----->      loop    inbox, step, emit
      policy    every decision, no clock, no I/O              build   library, model, engine
        ledger, blame, restarts, watchdog        <-mmap->     lifetime  dies with the front
    inline      the same loop in a thread (--isolation none)  faults  on purpose, for tests

Both sides share `channel` (frames and the messages in them) and `breadcrumb` (what the child is
doing right now, readable after it died). The front imports `supervisor` or `inline` only: nothing
here makes it load libllama.
"""
