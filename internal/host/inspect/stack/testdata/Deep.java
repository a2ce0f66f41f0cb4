public class Deep {
	static final Object lock = new Object();

	static void hold() throws Exception {
		synchronized (lock) {
			System.out.println("ready");
			Thread.sleep(10_000_000);
		}
	}

	static void want() {
		synchronized (lock) {
		}
	}

	public static void main(String[] a) throws Exception {
		synchronized (lock) {
			for (int i = 0; i < 3; i++) {
				Thread t = new Thread(Deep::want, "worker-" + i);
				t.setDaemon(true);
				t.start();
			}
			hold();
		}
	}
}
