/* What the TensorRT bindings link to, as on a machine whose driver is too old: each factory says so and returns null. */
static void *refuse(void *logger)
{
    /* LOG is the place of ILogger::log(Severity, char const *) among its virtual functions; 1 is ERROR. */
    if (logger)
        (*(void (***)(void *, int, const char *))logger)[LOG](logger, 1, "CUDA initialization failure with error: 35");
    return 0;
}

void *createInferBuilder_INTERNAL(void *logger, int version) { return refuse(logger); }
void *createInferRuntime_INTERNAL(void *logger, int version) { return refuse(logger); }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *name) { return 0; }
