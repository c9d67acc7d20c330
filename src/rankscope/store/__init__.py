"""The only memory of a study: SQLite state, hashed artifacts, and a lock against two runners."""

from rankscope.store.artifacts import *
from rankscope.store.database import *
from rankscope.store.history import *
from rankscope.store.ledger import *
from rankscope.store.loading import *
from rankscope.store.lock import *
from rankscope.store.row_hashes import *
from rankscope.store.transfer import *
from rankscope.store.verify import *
