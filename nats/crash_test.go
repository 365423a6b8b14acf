package nats

const crashChild = "LAMBDAD_NATS_TEST_CRASH"

func crashMain() {}
