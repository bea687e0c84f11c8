# A writer dies within a transaction: its log and its shared memory stay.
python3 - <<'PYTHON' || echo "status $?"
import os, signal, use
db = use.opened()
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute("PRAGMA cache_size = 4")
for number in range(200):
    db.execute("INSERT INTO entries VALUES (?, 5, ?)", (50000 + number, f"kept {number}"))
db.execute("BEGIN")
for number in range(2000):
    db.execute("INSERT INTO entries (writer, text) VALUES (6, ?)", (f"lost {number}",))
db.execute("UPDATE entries SET text = 'lost'")
os.kill(os.getpid(), signal.SIGKILL)
PYTHON
ls
