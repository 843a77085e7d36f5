"""One party's secret stays one party's. Stands on `core`."""
