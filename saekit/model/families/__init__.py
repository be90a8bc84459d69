"""The families of models that saekit reads: one module each fills a `Decoder`."""
