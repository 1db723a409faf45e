"""Imports Megatron once and forks the launcher of every training that is asked for.

A child is what `python -m tsugiki.pretrain.training.worker JOB PROCESSES` is, without the seconds of importing. Requests come
as lines of JSON on standard input, answers leave on the descriptor that is the argument:
{"start": [JOB, PROCESSES], "environment": {...}, "console": FILE, "fault": CODE} gives {"pid": N}; {"wait": N}
gives {"status": N}. The code runs before the training and breaks what the test wants broken; with "start": null
it is all that runs.
"""

import gc
import json
import os
import sys
import traceback


def main() -> None:
    from tsugiki.pretrain.runtime.megatron_cpu import import_megatron
    from tsugiki.pretrain.training import worker

    import_megatron()
    import tsugiki.pretrain.training.trainer  # noqa: F401

    gc.freeze()
    answers = os.fdopen(int(sys.argv[1]), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            console = os.open(request["console"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    os.dup2(console, 1)
                    os.dup2(console, 2)
                    os.environ.update(request["environment"])
                    exec(request["fault"], {})
                    if request["start"] is None:
                        status = 0
                    else:
                        sys.argv = ["worker", *request["start"]]
                        status = worker.main()
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            os.close(console)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
