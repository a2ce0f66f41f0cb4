import threading
import time


def inner(n):
    if n:
        return inner(n - 1)
    print("ready", flush=True)
    time.sleep(10000)


def worker(event):
    event.wait()


class Café:
    def run(self):
        inner(2)


event = threading.Event()
for _ in range(3):
    threading.Thread(target=worker, args=(event,), daemon=True).start()
Café().run()
