# Four processes write while a fifth reads; then a checkpoint, and an orderly end.
cat >use.py <<'PYTHON'
import sqlite3, sys

def opened():
    db = sqlite3.connect("data.db", timeout=60, isolation_level=None)
    db.execute("PRAGMA synchronous = NORMAL")
    return db

def told(db):
    print(db.execute("PRAGMA integrity_check").fetchone()[0])
    query = "SELECT writer, count(*), sum(length(text)), max(text) FROM entries GROUP BY writer"
    for row in db.execute(query):
        print(*row)
PYTHON
write() {
  python3 - "$1" <<'PYTHON'
import sys, use
writer, db = int(sys.argv[1]), use.opened()
for number in range(60):
    db.execute("BEGIN IMMEDIATE")
    values = (writer * 10000 + number, writer, f"{writer} wrote {number}")
    db.execute("INSERT INTO entries VALUES (?, ?, ?)", values)
    db.execute("DELETE FROM entries WHERE id = ?", (writer * 60 + number,))
    db.execute("COMMIT")
PYTHON
}
# Every transaction adds one and takes one away.
python3 - <<'PYTHON' &
import use
db = use.opened()
while db.execute("SELECT count(*) FROM entries WHERE writer = 4").fetchone()[0] < 60:
    assert db.execute("SELECT count(*) FROM entries").fetchone()[0] == 3000
PYTHON
reader=$!
writers=()
for number in 1 2 3 4; do
  write "$number" &
  writers+=($!)
done
for process in "${writers[@]}" "$reader"; do wait "$process"; done
python3 - <<'PYTHON'
import use
db = use.opened()
print(*db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
use.told(db)
PYTHON
ls
