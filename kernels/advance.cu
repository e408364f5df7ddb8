// The number of the step, kept on the device, goes on.
FUNCTION void run(const STEP& s, const Block& block) {
    *(int64*)s.step += 1;
}
