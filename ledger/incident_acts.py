"""The store's acts on incidents: what a person says of them."""

from ledger import incidents, open_incidents
from ledger.errors import LedgerError
from ledger.keeping import Keeping
from ledger.open_incidents import OPEN, Incident
from ledger.redact import check_storable


class IncidentActs(Keeping):
    """Every act is a transaction of its own, or part of the one around it."""

    def incident(self, incident_id: str) -> Incident | None:
        with self._joined():
            return open_incidents.by_id(self._conn, incident_id)

    def close_incident(
        self, incident_id: str, *, reason: str, actor: str, at_us: int
    ) -> Incident | None:
        """A named person says that it is over; None when there is no such incident. Cords stay as
        they are. Raises LedgerError when it is closed already."""
        if not reason.strip() or not actor.strip():
            raise LedgerError("an incident is closed by a named person with a reason")
        check_storable(incident_id, reason, actor)
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is None:
                return None
            if found.state != OPEN:
                raise LedgerError(f"{found.closed_by} has closed it: {found.closed_because}")
            return incidents.close(batch, found, actor, reason, at_us)
