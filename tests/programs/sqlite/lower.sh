# A database in WAL mode, closed, as an image has it.
python3 - <<'PYTHON'
import sqlite3
db = sqlite3.connect("data.db", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, writer INTEGER, text TEXT)")
db.execute("CREATE INDEX by_writer ON entries (writer, text)")
db.execute("BEGIN")
for number in range(3000):
    db.execute("INSERT INTO entries (writer, text) VALUES (0, ?)", (f"lower {number} " * 5,))
db.execute("COMMIT")
db.close()
PYTHON
