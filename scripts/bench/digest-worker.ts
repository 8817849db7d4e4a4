/** One thread that reads devices of one node, and the handle by which it is asked. */
import { fileURLToPath } from 'node:url';
import { Worker, isMainThread, parentPort } from 'node:worker_threads';
import { deviceContent, type DeviceContent, type Wanted } from './device-content.js';

type Answer = { readonly content: DeviceContent } | { readonly problem: string };

/** Reads one device after the other, beside what the caller does. */
export class DigestWorker {
  private readonly worker = new Worker(fileURLToPath(import.meta.url));
  private last: Promise<unknown> = Promise.resolve();

  content(wanted: Wanted): Promise<DeviceContent> {
    const mine = this.last.then(() => this.ask(wanted));
    this.last = mine.catch(() => undefined);
    return mine;
  }

  private ask(wanted: Wanted): Promise<DeviceContent> {
    return new Promise((done, fail) => {
      this.worker.once('error', fail);
      this.worker.once('message', (answer: Answer) => {
        this.worker.off('error', fail);
        if ('content' in answer) done(answer.content);
        else fail(new Error(answer.problem));
      });
      this.worker.postMessage(wanted);
    });
  }

  async close(): Promise<void> {
    await this.worker.terminate();
  }
}

if (!isMainThread) {
  parentPort?.on('message', (wanted: Wanted) => {
    deviceContent(wanted).then(
      (content) => parentPort?.postMessage({ content } satisfies Answer),
      (error: unknown) => parentPort?.postMessage({ problem: `${wanted.exportName}: ${error instanceof Error ? error.message : String(error)}` } satisfies Answer),
    );
  });
}
