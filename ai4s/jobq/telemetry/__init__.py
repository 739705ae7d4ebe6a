"""OpenTelemetry: traces that follow a call from its producer to its settlement, and metrics of producers and workers.

The only importer of opentelemetry and of its exporters, and only where somebody has switched it on: without that nothing here is
more than a look at a flag. Telemetry serves onlookers; nothing waits for it, and no fault of it reaches a call.

Next: `switches.py` for when it is on, `sending.py` for producers, `working.py` for workers.
"""
