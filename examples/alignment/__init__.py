"""How far weight matching brings two independent nets: `PYTHONPATH=examples python -m alignment`."""
