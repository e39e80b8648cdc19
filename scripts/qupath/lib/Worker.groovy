/*
 * Gives a job to the worker, "qupath-ext serve", which keeps its models loaded. It listens on this computer only.
 */

import groovy.transform.CompileStatic
import groovy.transform.Field
import org.slf4j.Logger
import org.slf4j.LoggerFactory
import qupath.lib.io.GsonTools

@Field final Logger log = LoggerFactory.getLogger('qupath-ext')
@Field final gson = GsonTools.getInstance()

/** The answer to a job; null if there is no worker, it is of another version, does not take the job, or went away. */
Map ask(File folder, String version, window) {
    def worker = alive(version)
    if (worker == null)
        return null
    def accepted = null
    try {
        accepted = request(worker, 'POST', '/jobs', [folder: folder.path])
        if (accepted.http >= 300) {
            log.info('The worker does not take the job: {}', accepted.message ?: accepted.http)
            return null
        }
        log.info('The worker has the job')
        def answer = follow(worker, accepted.id.toString(), window)
        ([answer.message] + (answer.notes ?: [])).each { log.info('{}', it) }
        return answer
    } catch (IOException e) {
        log.warn('The worker is gone ({})', e.message)
        return null
    } catch (InterruptedException e) {
        cancel(worker, accepted.id.toString())
        throw e
    }
}

/** What the file of the worker says, if it answers. */
Map alive(String version) {
    def file = new File(stateFolder(), 'worker.json')
    if (!file.isFile())
        return null
    try {
        def worker = gson.fromJson(file.getText('UTF-8'), Map)
        def same = worker.version == version && request(worker, 'GET', '/health', null).http == 200
        return same ? worker : null
    } catch (IOException e) {
        log.debug('no worker: {}', e.message)
        return null
    }
}

/** Where programs keep their state for a user: on Windows, macOS and other systems. */
File stateFolder() {
    def home = System.getProperty('user.home')
    def system = System.getProperty('os.name').toLowerCase()
    if (system.startsWith('windows'))
        return new File(System.getenv('LOCALAPPDATA') ?: home + '/AppData/Local', 'qupath-ext')
    if (system.startsWith('mac'))
        return new File(home, 'Library/Application Support/qupath-ext')
    new File(System.getenv('XDG_STATE_HOME') ?: home + '/.local/state', 'qupath-ext')
}

/** The answer, once it is there; until then log and progress are passed on. */
Map follow(Map worker, String id, window) {
    def cancelled = false
    def offset = 0
    while (true) {
        def job = request(worker, 'GET', "/jobs/${id}?offset=${offset}".toString(), null)
        if (job.http >= 300)
            return [status: 'failed', message: "The worker lost the job (${job.message ?: job.http}). Run the script again."]
        (job.log ?: []).each { if (!window.show(it)) log.info('{}', it) }
        offset = job.offset as long
        if (job.progress)
            window.show("PROGRESS ${job.progress.done as long}/${job.progress.total as long} ${job.progress.stage}".toString())
        if (job.answer)
            return job.answer
        if (window.isCancelled() && !cancelled) {
            cancel(worker, id)
            cancelled = true
        }
        Thread.sleep(50)
    }
}

void cancel(Map worker, String id) {
    request(worker, 'POST', "/jobs/${id}/cancel".toString(), [:])
}

/** Sends a request with the token of the worker; the answer with the HTTP status as "http". */
Map request(Map worker, String method, String path, Map content) {
    def body = content == null ? null : gson.toJson(content)
    def (code, text) = send(worker.url.toString() + path, worker.token.toString(), method, body)
    (gson.fromJson(text ?: "{}", Map) ?: [:]) + [http: code]
}

@CompileStatic
List send(String url, String token, String method, String body) {
    HttpURLConnection connection = (HttpURLConnection) new URL(url).openConnection(Proxy.NO_PROXY)
    connection.setRequestMethod(method)
    connection.setConnectTimeout(2000)
    connection.setReadTimeout(30000)
    connection.setRequestProperty('Authorization', 'Bearer ' + token)
    if (body != null) {
        connection.setDoOutput(true)
        connection.setRequestProperty('Content-Type', 'application/json')
        OutputStream out = connection.getOutputStream()
        out.write(body.getBytes('UTF-8'))
        out.close()
    }
    int code = connection.getResponseCode()
    InputStream stream = code < 400 ? connection.getInputStream() : connection.getErrorStream()
    String text = stream == null ? '' : new String(stream.readAllBytes(), 'UTF-8')
    [code, text] as List
}

return this
