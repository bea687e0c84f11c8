# The next one finds what was committed. Then the file is made small, and a plain one.
python3 - <<'PYTHON'
import use
db = use.opened()
use.told(db)
db.execute("DELETE FROM entries WHERE writer = 0 AND id % 3 > 0")
print(*db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[:1])
db.execute("VACUUM")
use.told(db)
print(db.execute("PRAGMA journal_mode = DELETE").fetchone()[0])
db.execute("INSERT INTO entries (writer, text) VALUES (7, 'by a rollback journal')")
db.execute("BEGIN")
db.execute("UPDATE entries SET text = 'taken back'")
db.execute("ROLLBACK")
db.execute("VACUUM INTO 'copy.db'")
use.told(db)
PYTHON
ls
