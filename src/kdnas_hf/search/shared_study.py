from .leases import WORKER_FILE
from .study import SearchStudy as SharedStudy
